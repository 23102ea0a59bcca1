"""The kernel as this server process holds it: `kernel().buffer(size)`, and the buffers that it made."""

from atoll.ipc.buffer import Buffer, BufferMode
from atoll.ipc.errors import PeerMisbehaved
from atoll.ipc.system.kernel import BufferMade, Kernel

from .deliveries import Deliveries

_own: tuple[Kernel, Deliveries] | None = None


def provide(own: Kernel, deliveries: Deliveries) -> None:
    """The process's capability on the kernel and what the kernel delivers to it, once, at its start."""
    global _own
    _own = own, deliveries


def _provided() -> tuple[Kernel, Deliveries]:
    if _own is None:
        raise LookupError(
            "this process was not started by a kernel: give the server what it needs in the test instead"
        )
    return _own


def kernel() -> Kernel:
    """System calls, with the right `serve`. LookupError in a process that no kernel started (a test)."""
    return _provided()[0]


def buffer(made: BufferMade) -> Buffer:
    """A buffer that a system call has made, mapped in this process. It may stand in messages."""
    found = _provided()[1].buffer(made.token)
    if found is None:
        raise PeerMisbehaved("the kernel", "a buffer was made and not delivered")
    return found


async def share(handle: int, client: int, mode: BufferMode) -> None:
    """Give a client (`current().client`) a buffer of this server's, so that a reply that carries it need not wait for the
    kernel. Raises what `Kernel.buffer_share` raises."""
    own, deliveries = _provided()
    await deliveries.share(own, handle, client, mode)


def forget(made: BufferMade) -> None:
    """Unmap a buffer in this process, as far as nobody here uses it; the buffer itself stays."""
    _provided()[1].forget(made.token)
