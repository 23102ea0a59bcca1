"""A node that serves, for tests that do not change what it is made of."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .nodes import RealNode, booted


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RealNode]:
    """`state`, `counter` and `teller` at level process."""
    with booted(tmp_path) as running:
        yield running
