"""What the kernel stands on fails: a control group that takes nothing, a fork server that dies twice over one request."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atoll.ipc.system.kernel import Slice
from atoll.ipc.system.records import CapabilityRow
from atoll.ipc.system.state import StoreFull
from atoll.microkernel.allotments import Allotments
from atoll.microkernel.capabilities import Capability
from atoll.microkernel.changes import Batch, Changes
from atoll.microkernel.descriptions import describe_all
from atoll.microkernel.life import Life
from atoll.microkernel.powers import Powers
from atoll.microkernel.processes import ZygoteDied
from atoll.microkernel.protection import probe
from atoll.microkernel.slices import GroupFailed, Limits
from atoll.microkernel.supervisor import Supervisor

from .nodes import PACKAGES


class Refusing:
    """A control group whose files take nothing."""

    async def _refuse(self) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    freeze = thaw = end = _refuse


class Events:
    def __init__(self) -> None:
        self.told: list[tuple[str, str, str]] = []

    def event(self, kind: str, who: str, sentence: str) -> None:
        self.told.append((kind, who, sentence))

    def ended(self, server: str, why: str) -> None:
        self.event("ended", server, why)


class Changing:
    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


class Windows:
    async def passed(self, servings: Any, late: Any) -> None: ...


async def test_a_server_that_its_group_neither_freezes_nor_lets_go_is_ended() -> None:
    """Its gate is shut by then: it would answer nobody any more. Whoever asked is told what failed."""
    nothing: Any = None
    killed: list[bool] = []
    process = SimpleNamespace(kill=lambda: killed.append(True))
    notice = SimpleNamespace(gate=lambda shut: None)
    status = SimpleNamespace(window=lambda: 0)
    serving = SimpleNamespace(gone=False, notice=notice, status=status, process=process)
    server: Any = SimpleNamespace(name="counter", state="serving", serving=serving, reason="")
    node: Any = SimpleNamespace(changing=lambda server: Changing(), group=lambda server: Refusing())
    events: Any = Events()
    windows: Any = Windows()
    life = Life(node, events, *(nothing,) * 5, windows)
    with pytest.raises(GroupFailed, match=r"counter could not be frozen: .*Input/output error"):
        await life.freeze(server, "")
    assert killed
    assert [kind for kind, _, _ in events.told] == ["ended"]


async def test_a_group_that_cannot_be_emptied_ends_no_kernel() -> None:
    nothing: Any = None
    events: Any = Events()
    group: Any = Refusing()
    await Supervisor(nothing, nothing, events, nothing, nothing).end_all_in(group, "counter")
    ((kind, who, sentence),) = events.told
    assert (kind, who) == ("left behind", "counter") and "Input/output error" in sentence


class Dying:
    async def spawn(self, *_: object, **__: object) -> None:
        raise ZygoteDied("was killed by signal 9")


async def test_a_package_that_no_fork_server_lives_to_describe_has_a_sentence_in_place_of_a_description() -> (
    None
):
    forge: Any = Dying()
    packages = {name: Path(PACKAGES / name) for name in ("counter", "teller")}
    found = await describe_all(forge, probe(), packages, {})
    assert {type(each) for each in found.values()} == {str}
    assert all("the fork server ended twice" in str(each) for each in found.values())


async def test_a_grant_that_came_to_nothing_is_taken_out_of_the_record_once_the_store_has_room() -> None:
    """Its row was committed before: the next boot would give it."""
    owed: list[Batch] = []

    async def commit(changes: Changes) -> None:
        raise StoreFull("the store", 2, 1)

    nothing: Any = None
    store = SimpleNamespace(commit=commit, owe=owed.append, batch=lambda note: Batch(b"1", note))
    node: Any = SimpleNamespace(store=store)
    events: Any = SimpleNamespace(capabilities=lambda *_: None)
    made = Capability(
        id=7, parent=1, holder="counter", server="gpu", interface="Gpu", badge=1, rights=frozenset({"read"}), lasting=True
    )  # fmt: skip
    await Powers(node, events, nothing, nothing)._take_out(made)
    assert [batch.changes().writes for batch in owed] == [{CapabilityRow.key_of(7): None}]


async def test_limits_that_cannot_be_set_as_a_whole_are_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group has them, and then its processes cannot be looked at: there is no descriptor left."""
    nothing: Any = None
    set_to: list[Limits] = []
    group = SimpleNamespace(limit=lambda limits: set_to.append(limits) or (), members=lambda: [os.getpid()])
    node: Any = SimpleNamespace(changing=lambda server: Changing(), group=lambda server: group)
    server: Any = SimpleNamespace(
        name="counter", own=Limits(cpu_weight=50), unenforced=(), changing=Changing()
    )
    party: Any = SimpleNamespace(holder="@1")

    def short(_: object) -> list[str]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", short)
        with pytest.raises(GroupFailed, match="Too many open files"):
            await Allotments(node, nothing).set(server, Slice(cpu_weight=200), party)
    assert [limits.cpu_weight for limits in set_to] == [200, 50]
    assert server.own == Limits(cpu_weight=50)
