"""The kernel's interface as this server process holds it: `kernel().buffer(size)`."""

from atoll.ipc.system.kernel import Kernel

_own: Kernel | None = None


def provide(own: Kernel) -> None:
    """The process's capability on the kernel, once, at its start."""
    global _own
    _own = own


def kernel() -> Kernel:
    """System calls, with the right `serve`. LookupError in a process that no kernel started (a test)."""
    if _own is None:
        raise LookupError(
            "this process was not started by a kernel: give the server what it needs in the test instead"
        )
    return _own
