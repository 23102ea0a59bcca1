"""In which order tests begin."""

import pytest

LONG = ("tests/docs/", "tests/shell/", "tests/servers/feedback/", "tests/fuzz/", "tests/microkernel/")
"""Files here take a minute and more, for they boot nodes or compile: what runs last would run alone, beside idle cores."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((at for at, folder in enumerate(LONG) if item.nodeid.startswith(folder)), len(LONG))

    items.sort(key=place)
