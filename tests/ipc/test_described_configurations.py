"""What is wrong with a configuration, in a table whose keys are its author's own."""

from typing import Any

import msgspec
import pytest

from atoll.ipc import Config, Interface, Serves, call
from atoll.ipc.runtime.describe import describe


class Port(msgspec.Struct, forbid_unknown_fields=True):
    number: int


class Settings(Config):
    ports: dict[str, Port] = msgspec.field(default_factory=dict)
    sets: list[dict[str, int]] = msgspec.field(default_factory=list)


class Sound(Interface):
    @call("use")
    def sound(self) -> None: ...


class Server(Serves[Sound]):
    config: Settings

    @Sound.sound.serve
    def sound(self) -> None: ...


@pytest.mark.parametrize(
    ("given", "path", "expected", "found"),
    [
        ({"ports": {"a": 3}}, ("ports",), "object at [...]", "int"),
        ({"ports": {"a": {"number": "x"}}}, ("ports",), "int at [...].number", "str"),
        ({"ports": {"a.b[0]": {"number": "x"}}}, ("ports",), "int at [...].number", "str"),
        ({"ports": {"a": {}}}, ("ports",), 'the key "number" at [...]', "none"),
        ({"ports": {"a": {"number": 1, "name": 2}}}, ("ports",), "a known key at [...]", 'the key "name"'),
        ({"sets": [{"a": 1}, {"b": "c"}]}, ("sets", 1), "int at [...]", "str"),
        ({"sets": [3]}, ("sets", 0), "object", "3"),
    ],
)
def test_it_is_told_where(
    given: dict[str, Any], path: tuple[str | int, ...], expected: str, found: str
) -> None:
    """It was `KeyError: ']'`, or another key than the one that was meant."""
    fault = describe(Server, {"config": given}).config_faults["config"]
    assert (fault.path, fault.expected, fault.found, fault.at_key) == (path, expected, found, False)
