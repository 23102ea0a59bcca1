"""A server with threads that are not Python's own, of a library in C that calls back, say."""

import ctypes
import gc
import threading

from atoll.ipc import Interface, Serves, call
from atoll.ipc.runtime.launch import Process
from tests.kit.serving import serving

THREADS = 64
"""More than the C library keeps stacks of, once they have ended."""
LOOKS = 8

_Begins = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)


class Library(Interface):
    @call("use")
    def work(self) -> int:
        """How many threads Python knows of when those that worked have ended."""

    @call("use")
    def begin(self) -> None:
        """In a thread, until `end`."""

    @call("use")
    def end(self) -> None: ...

    @call("use")
    def known(self) -> int:
        """Of how many threads the process remembers how busy they were."""


class LibraryServer(Serves[Library]):
    def __init__(self) -> None:
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._ends.wait)

    @Library.begin.serve
    def begin(self) -> None:
        self._ends.clear()
        self._thread = threading.Thread(target=self._ends.wait)
        self._thread.start()

    @Library.end.serve
    def end(self) -> None:
        self._ends.set()
        self._thread.join()

    @Library.known.serve
    def known(self) -> int:
        return len(next(found for found in gc.get_objects() if isinstance(found, Process))._cpu)

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


def test_of_threads_that_have_ended_nothing_is_kept() -> None:
    """Each left an entry for good, where the kernel had looked meanwhile: a process with threads that come and go grew."""
    with serving(LibraryServer) as served:
        library = served.proxies[0]
        for _ in range(LOOKS):
            library.begin.now()
            served.observe()
            library.end.now()
        served.observe()
        assert library.known.now() == 0
