"""A server with threads that are not Python's own, of a library in C that calls back, say."""

import ctypes
import threading

from atoll.ipc import Interface, Serves, call
from tests.kit.serving import serving

THREADS = 64
"""More than the C library keeps stacks of, once they have ended."""

_Begins = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)


class Library(Interface):
    @call("use")
    def work(self) -> int:
        """How many threads Python knows of when those that worked have ended."""


class LibraryServer(Serves[Library]):
    @Library.work.serve
    def work(self) -> int:
        library, here = ctypes.CDLL(None), threading.Barrier(THREADS)

        @_Begins
        def begins(_: object) -> None:
            threading.current_thread()  # from now on Python lists it, also when it has ended
            here.wait()

        threads = [ctypes.c_ulong() for _ in range(THREADS)]
        for thread in threads:
            assert library.pthread_create(ctypes.byref(thread), None, begins, None) == 0
        for thread in threads:
            library.pthread_join(thread, None)
        return threading.active_count()


def test_it_outlives_them() -> None:
    """To ask how busy they are, when the kernel looked whether it lives, was a segmentation fault."""
    with serving(LibraryServer) as served:
        assert served.proxies[0].work.now() >= 1
        served.observe()
        assert served.stop() == 0
