"""In which order tests begin, that what they start can be interrupted, that no reason to skip one is lost, and that none
fails for taking long."""

import signal
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A job that a shell put into the background ignores it, and so would every command and kernel that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("machine of any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("machine of any speed")

LONG = ("tests/docs/", "tests/shell/", "tests/servers/feedback/", "tests/fuzz/", "tests/microkernel/")
"""Files here take a minute and more, for they boot nodes or compile: what runs last would run alone, beside idle cores."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((at for at, folder in enumerate(LONG) if item.nodeid.startswith(folder)), len(LONG))

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """pytest-trio skips a test anew, and leaves out why: what the test itself raised says so."""
    try:
        return (yield)
    except pytest.skip.Exception as skipped:
        raised: BaseException | None = skipped.__context__
        while isinstance(raised, BaseExceptionGroup):
            raised = raised.exceptions[0]
        if isinstance(raised, pytest.skip.Exception):
            raise raised from None
        raise
