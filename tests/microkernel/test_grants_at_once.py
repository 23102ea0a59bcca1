"""Steps on buffers that meet: each in a thread, in any order, cancelled, and left by whoever asked for them.

The kernel's own parts on real memory; only the processes are missing, so nobody maps what is handed over.
"""

import errno
import mmap
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.ipc.buffer import BufferMode
from atoll.ipc.errors import AtollError, BadRequest, NotFound, Overloaded, QuotaExceeded
from atoll.ipc.system.control import DeliverBuffer
from atoll.microkernel import grants as grants_module
from atoll.microkernel.accounts import Ledger
from atoll.microkernel.authority import SMALL
from atoll.microkernel.channels import Channels
from atoll.microkernel.grants import Grants
from atoll.microkernel.image import Account
from atoll.microkernel.mechanisms import HostChance
from atoll.microkernel.parties import Party

SIZE = 4 * mmap.PAGESIZE
MOST = 12


class Ground:
    """As much of a node as grants look at."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.ledger = Ledger({"all": Account(buffers=MOST * SIZE)})
        self.channels = Channels(HostChance())
        self.nursery = nursery
        self.grants = Grants(self)  # type: ignore[arg-type]
        self.parties: list[Party] = []

    def serving(self, server: str) -> Party | None:
        return None

    def soon(self, action: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        self.nursery.start_soon(action, *arguments)

    def party(self) -> tuple[Party, int]:
        """One that has attached, and its channel to a server."""
        party = Party(len(self.parties) + 1, f"@{len(self.parties) + 1}", "all")
        self.parties.append(party)
        return party, self.channels.make(party, "server", SMALL).number

    def leave(self, party: Party) -> None:
        party.gone = True
        for channel in self.channels.of_client(party):
            self.grants.closed(channel.number)
            self.channels.forget(channel)
        self.grants.leave(party)
        party.close()

    @property
    def used(self) -> int:
        return self.ledger.used("all", "buffers")


def memories() -> int:
    """Descriptors of granted buffers that this process has open."""
    return sum(
        "memfd:buffer " in os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()
    )


@pytest.fixture(autouse=True)
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grants_module, "AT_ONCE", 0)


async def settled(ground: Ground) -> None:
    while ground.grants._ending:
        await trio.lowlevel.checkpoint()


def test_one_that_leaves_while_its_buffer_is_copied_leaves_nothing() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            ground = Ground(nursery)
            party, channel = ground.party()
            made = await ground.grants.make(party, SIZE)

            async def share() -> None:
                with pytest.raises(NotFound):
                    await ground.grants.share(party, made.number, channel, "readonly")

            nursery.start_soon(share)
            while ground.used == SIZE:  # until the copy is charged: its thread works
                await trio.lowlevel.checkpoint()
            ground.leave(party)
        assert (ground.used, memories()) == (0, 0)

    trio.run(main)


def test_a_buffer_for_which_there_is_no_descriptor_is_for_another_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def short(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            ground = Ground(nursery)
            party, _ = ground.party()
            with monkeypatch.context() as patched:
                patched.setattr(os, "memfd_create", short)
                with pytest.raises(Overloaded, match="file descriptors"):
                    await ground.grants.make(party, SIZE)
            assert ground.used == 0
            ground.leave(party)

    trio.run(main)


@pytest.mark.parametrize("mode", ["writable", "readonly"])
def test_what_could_not_be_handed_over_is_not_shared(
    monkeypatch: pytest.MonkeyPatch, mode: BufferMode
) -> None:
    """Asked for again it is handed over: messages would name what their receiver does not know."""

    def short(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            ground = Ground(nursery)
            client, channel = ground.party()
            owner, sent = Party(7, "server", "all"), list[object]()
            monkeypatch.setattr(client, "send", lambda message, descriptors: sent.append(message))
            made = await ground.grants.make(owner, SIZE)
            with monkeypatch.context() as patched:
                patched.setattr(os, "open", short)
                with pytest.raises(Overloaded, match="file descriptors"):
                    await ground.grants.share(owner, made.number, channel, mode)
            assert not sent
            assert ground.grants.rows(owner)[0].shares == {}
            token = await ground.grants.share(owner, made.number, channel, mode)
            assert [message.token for message in sent if isinstance(message, DeliverBuffer)] == [token]
            ground.leave(client)
            ground.grants.leave(owner)
            await settled(ground)
            owner.close()

    trio.run(main)


def test_what_could_not_be_handed_to_the_next_process_is_handed_over_when_it_is_named_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its owner is told by its notice to ask again, which it does not else."""

    def short(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            ground = Ground(nursery)
            owner, number = ground.party()
            made = await ground.grants.make(owner, SIZE)
            await ground.grants.share(owner, made.number, number, "writable")
            following, sent, told = Party(8, "server", "all"), list[object](), list[bool]()
            monkeypatch.setattr(following, "send", lambda message, descriptors=(): sent.append(message))
            monkeypatch.setattr(owner.notice, "withdrew", lambda: told.append(True))
            with monkeypatch.context() as patched:
                patched.setattr(os, "open", short)
                ground.grants.hand_over(following, [ground.channels._all[number]])  # type: ignore[arg-type]
            assert told
            monkeypatch.setattr(ground, "serving", lambda server: following)
            await ground.grants.share(owner, made.number, number, "writable")
            assert [message.token for message in sent if isinstance(message, DeliverBuffer)] == [made.number]
            ground.leave(owner)
            await settled(ground)
            following.close()

    trio.run(main)


@pytest.mark.parametrize("how", ["unshared", "gone"])
def test_what_somebody_was_to_unmap_and_did_not_is_taken_back(how: str) -> None:
    """Whoever revokes a buffer need not believe that it was unmapped, and nobody else is given that memory."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            ground = Ground(nursery)
            client, channel = ground.party()
            other = ground.channels.make(client, "another", SMALL).number
            owner = Party(7, "server", "all")
            made = await ground.grants.make(owner, SIZE)
            await ground.grants.share(owner, made.number, channel, "writable")
            buffer = ground.grants._all[made.number]
            with mmap.mmap(buffer._descriptor, SIZE) as held:
                held[:6] = b"secret"
                if how == "unshared":
                    assert await ground.grants.unshare(owner, made.number, channel)
                else:
                    ground.leave(client)
                await ground.grants.revoke(owner, made.number)
                assert held[:6] == bytes(6)
            with pytest.raises((BadRequest, NotFound)):
                await ground.grants.share(owner, made.number, other, "writable")
            assert buffer.spent
            if how == "unshared":
                ground.leave(client)
            ground.grants.leave(owner)
            await settled(ground)
            owner.close()

    trio.run(main)


def test_where_no_thread_can_be_started_what_is_left_behind_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some server has taken all the processes that there may be. Its end is a task of the kernel's own."""

    async def none(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            ground = Ground(nursery)
            party, _ = ground.party()
            await ground.grants.make(party, SIZE)
            monkeypatch.setattr(trio.to_thread, "run_sync", none)
            ground.leave(party)
        assert (ground.used, memories()) == (0, 0)

    trio.run(main)


def test_a_share_that_meets_a_revocation_comes_before_or_not_at_all() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            ground = Ground(nursery)
            (party, first), second = ground.party(), 0
            second = ground.channels.make(party, "another", SMALL).number
            made = await ground.grants.make(party, SIZE)
            await ground.grants.share(party, made.number, first, "writable")
            told: list[object] = []

            async def revoke() -> None:
                told.append(await ground.grants.revoke(party, made.number))

            async def share() -> None:
                with pytest.raises(BadRequest, match="not taken back"):
                    await ground.grants.share(party, made.number, second, "writable")
                told.append("refused")

            async with trio.open_nursery() as both:
                both.start_soon(revoke)
                while not ground.grants._all[made.number].changing.locked():
                    await trio.lowlevel.checkpoint()
                both.start_soon(share)
            assert told == [1, "refused"]
            assert ground.grants.rows(party)[0].shares == {}
            ground.leave(party)

    trio.run(main)


def test_whoever_gives_up_waiting_is_charged_nothing() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            ground = Ground(nursery)
            party, _ = ground.party()
            async with ground.grants._threads, trio.open_nursery() as waiting:
                ground.grants._threads.total_tokens = 1
                waiting.start_soon(ground.grants.make, party, SIZE)
                while not ground.used:
                    await trio.lowlevel.checkpoint()
                waiting.cancel_scope.cancel()
            assert (ground.used, memories()) == (0, 0)
            ground.leave(party)

    trio.run(main)


async def _anything(ground: Ground, chance: random.Random) -> None:
    """A party's life: steps at random on buffers at random, some given up half-way; then it leaves."""
    grants = ground.grants
    party, channel = ground.party()
    made: list[int] = []

    async def step(name: str, number: int) -> None:
        match name:
            case "make":
                mode = chance.choice(("writable", "readonly"))
                made.append((await grants.make(party, SIZE, mode)).number)
            case "seal":
                made.append((await grants.seal(party, number)).number)
            case "share":
                await grants.share(
                    party, number, channel, chance.choice(("writable", "readonly", "immutable"))
                )
            case "unshare":
                await grants.unshare(party, number, channel)
            case "revoke":
                await grants.revoke(party, number)
            case "release":
                await grants.release(party, number)

    async def tried(name: str, number: int, within: float) -> None:
        with trio.move_on_after(within):
            try:
                await step(name, number)
            except AtollError:
                assert name != "make" or ground.used == MOST * SIZE or party.gone

    async with trio.open_nursery() as nursery:
        for _ in range(chance.randrange(1, 25)):
            name = chance.choice(("make", "make", "seal", "share", "share", "unshare", "revoke", "release"))
            number = chance.choice(made) if made else 0
            nursery.start_soon(tried, name, number, chance.choice((0.0, 0.0005, 1000.0)))
            for _ in range(chance.choice((0, 1, 20, 200))):  # threads get somewhere meanwhile
                await trio.lowlevel.checkpoint()
        ground.leave(party)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), parties=st.integers(1, 4))
def test_whatever_meets_accounts_and_memory_are_empty_in_the_end(seed: int, parties: int) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            ground = Ground(nursery)
            async with trio.open_nursery() as lives:
                for number in range(parties):
                    lives.start_soon(_anything, ground, random.Random(f"{seed} {number}"))
            await settled(ground)
            assert not ground.grants._lingering and not ground.grants._all
        assert (ground.used, memories()) == (0, 0)
        assert not any(ground.grants._shared.values())

    trio.run(main)


def test_what_is_anothers_is_not_there() -> None:
    """Numbers of buffers and channels can be guessed: whoever names another's learns nothing and gets nothing."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            ground = Ground(nursery)
            (owner, channel), (thief, own) = ground.party(), ground.party()
            number = (await ground.grants.make(owner, SIZE, note=b"mine")).number
            await ground.grants.share(owner, number, channel, "writable")
            grants = ground.grants
            for attempt in (
                lambda: grants.share(thief, number, own, "writable"),
                lambda: grants.share(thief, number, channel, "writable"),
                lambda: grants.hand_again(thief, number, 0),
                lambda: grants.hand_again(thief, number, channel),
                lambda: grants.hand_again(owner, number, channel),
                lambda: grants.hand_again(thief, number, own),
                lambda: grants.seal(thief, number),
                lambda: grants.unshare(thief, number, channel),
                lambda: grants.revoke(thief, number),
                lambda: grants.release(thief, number),
            ):
                with pytest.raises(NotFound):
                    await attempt()
            with pytest.raises(BadRequest, match="a caller that is a server"):
                await grants.make(thief, SIZE, of_server=True)
            assert (grants.rows(thief), [row.note for row in grants.rows(owner)]) == ([], [b"mine"])
            for party in (owner, thief):
                ground.leave(party)

    trio.run(main)


def test_a_channel_carries_so_many_buffers_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a mapping in the process at its other end, which has a bounded number of them."""
    monkeypatch.setattr(grants_module, "SHARES_MOST", 2)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            ground = Ground(nursery)
            party, channel = ground.party()
            one, two, three = [(await ground.grants.make(party, SIZE)).number for _ in range(3)]
            for number in (one, two, one):
                await ground.grants.share(party, number, channel, "writable")
            with pytest.raises(QuotaExceeded, match="shared over one channel"):
                await ground.grants.share(party, three, channel, "writable")
            assert await ground.grants.unshare(party, one, channel)
            await ground.grants.share(party, three, channel, "writable")
            ground.leave(party)

    trio.run(main)


def test_an_account_that_is_full_waits_for_what_is_ending() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            ground = Ground(nursery)
            (one, _), (two, _) = ground.party(), ground.party()
            for _ in range(MOST):
                await ground.grants.make(one, SIZE)
            with pytest.raises(QuotaExceeded):
                await ground.grants.make(two, SIZE)
            ground.leave(one)
            await ground.grants.make(two, MOST * SIZE)
            ground.leave(two)

    trio.run(main)
