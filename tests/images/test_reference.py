"""docs/images.md says what the Structs say."""

import importlib.util
from pathlib import Path

from atoll.ipc.system.state import State
from atoll.microkernel.image import KEYSPACE_RIGHTS, Table


def test_the_reference_is_the_format() -> None:
    spec = importlib.util.spec_from_file_location("reference", Path(__file__).parent / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    assert set(reference.TABLES) == set(Table.__subclasses__())
    assert reference.PAGE.read_text() == reference.page(), "run python tests/images/reference.py"


def test_keyspace_rights_are_those_of_the_store() -> None:
    from atoll.ipc.interface import rights

    assert set(KEYSPACE_RIGHTS) == set(rights(State)) - {"admin", "backup"}
