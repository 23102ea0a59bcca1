"""Accounts in a running node: what is charged, who is refused when it is spent, and that what is gone is given back."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.attach import Unwelcome
from atoll.ipc.errors import PeerDied, QuotaExceeded, TooLarge
from atoll.ipc.system.kernel import Load

from .nodes import IMAGE, PACKAGES, RealNode, booted, interface

Counter = interface("counter", "Counter")
Teller = interface("teller", "Teller")

ACCOUNT = """
[account.operators]
channels = 6
capabilities = 40
buffers = "1MiB"
descriptors = 28
pending = 4
"""


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    """A node whose operators may have little."""
    with booted(tmp_path_factory.mktemp("narrow"), more=ACCOUNT) as node:
        yield node


def recorded(attached: Attached, resource: str) -> bool:
    """Whether the refusal is listed, under who was refused."""
    who = f"@{attached.welcome.attachment}"
    return any(row.by == "quota" and resource in row.what for row in attached.kernel.refused.now(who))


def until_refused(action: Callable[[], object]) -> QuotaExceeded:
    """Do something until the account has nothing left for it."""
    while True:
        try:
            action()
        except QuotaExceeded as spent:
            return spent


def until_taken(action: Callable[[], object]) -> None:
    """Do something that is refused until what others had has been given back."""
    while True:
        try:
            action()
        except (QuotaExceeded, Unwelcome):
            continue
        return


def test_channels_are_charged_over_all_programs_of_an_account(narrow: RealNode) -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(narrow.attach()) for _ in range(2))
        for attached in (first, second):
            attached.open("counter", Counter)
        first.open("teller", Teller)
        second.open("teller", Teller)
        with pytest.raises(QuotaExceeded) as spent:
            second.keyspace("counter")
        assert (spent.value.account, spent.value.resource, spent.value.limit) == ("operators", "channels", 6)
        assert recorded(second, "channels")
        with pytest.raises(Unwelcome, match="'operators' has used its 6 of channels"):
            narrow.attach()
        first.close()
        second.keyspace("counter")


def test_capabilities_are_charged_and_come_back_when_they_are_revoked(narrow: RealNode) -> None:
    with narrow.attach() as attached:
        opened = attached.kernel.open.now("counter")
        spent = until_refused(lambda: attached.kernel.derive.now(opened.number))
        assert (spent.resource, spent.limit) == ("capabilities", 40)
        assert recorded(attached, "capabilities")
        attached.kernel.revoke.now(opened.number)
        attached.kernel.open.now("counter")


def test_descriptors_are_charged_for_buffers_too(narrow: RealNode) -> None:
    with narrow.attach() as attached:
        made = [attached.kernel.buffer.now(4096)]
        spent = until_refused(lambda: made.append(attached.kernel.buffer.now(4096)))
        assert (spent.resource, spent.limit) == ("descriptors", 28)
        assert recorded(attached, "descriptors")
        attached.kernel.buffer_release.now(made[0].number)
        attached.kernel.buffer.now(4096)


def test_what_a_program_held_is_given_back_when_it_goes(narrow: RealNode) -> None:
    def comes_and_goes() -> None:
        with narrow.attach() as attached:
            attached.open("counter", Counter)
            attached.kernel.buffer.now(1 << 19)

    for _ in range(30):
        until_taken(comes_and_goes)  # the kernel may not have seen yet that the ones before it are gone


def test_calls_in_hand_are_bounded_by_account_at_each_server(narrow: RealNode) -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(narrow.attach()) for _ in range(2))
        one, other = (attached.open("counter", Counter) for attached in (first, second))
        for counter in (one, one, other, other):
            counter.slow.start(600.0)
        spent = until_refused(lambda: other.get.now("x"))  # they need not have been taken yet
        assert (spent.account, spent.resource, spent.limit) == ("operators", "pending", 4)
        first.close()  # its calls are given up
        until_taken(lambda: other.get.now("x"))
        while not recorded(second, "pending"):
            pass


def test_system_calls_in_hand_are_bounded_by_account(narrow: RealNode) -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(narrow.attach()) for _ in range(2))
        first.open("counter", Counter).say.now("something to follow")
        followed = [iter(attached.kernel.logs.now()) for attached in (first, first, second, second)]
        for lines in followed:
            next(lines)
        with pytest.raises(QuotaExceeded, match="'operators' has used its 4 of pending"):
            first.kernel.ps.now()
        second.close()
        until_taken(first.kernel.ps.now)


def test_the_kernel_opens_as_many_descriptors_as_it_may(tmp_path: Path) -> None:
    """Accounts say how many it keeps, not what a shell happens to allow: eighty channels where the shell said 200."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip(f"this user may open {hard} descriptors, too few to see a difference")
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        node = RealNode(tmp_path, IMAGE.format(level="process", packages=PACKAGES, counter="", more=""))
        node.boot()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        with ExitStack() as stack:
            attached = [stack.enter_context(node.attach()) for _ in range(40)]
            for each in attached:
                assert each.open("counter", Counter).get.now("x") == 0
            assert node.kernel is not None
            assert len(os.listdir(f"/proc/{node.kernel.pid}/fd")) > 200
    finally:
        assert node.stop() == 0


def test_a_server_that_cannot_be_paid_for_is_not_started(tmp_path: Path) -> None:
    """Its account has too little for a process: a sentence, and nothing of it is left."""
    poor = 'account = "poor"'
    with (
        pytest.raises(AssertionError, match="account 'poor' has used its 8 of descriptors"),
        booted(tmp_path, counter=poor, more="[account.poor]\ndescriptors = 8"),
    ):
        pass


SMALL = f"""
[account.small]
channels = {{channels}}

[server.babbler]
package = "{PACKAGES}/babbler"
account = "small"
needs = {{{{}}}}
"""


def held(attached: Attached, server: str) -> list[str]:
    """Of whom a server has capabilities, beside the kernel."""
    rows = attached.kernel.caps.now(server)
    return [row.server for row in rows if row.holder == server and row.server not in (server, "kernel")]


def grant(attached: Attached, server: str, to: str) -> None:
    root = next(row.number for row in attached.kernel.caps.now(server) if row.parent == 0)
    attached.kernel.grant.now(root, to)


def kill(attached: Attached, server: str) -> None:
    """And wait until another process has come up, or none will."""
    pid = next(row.pid for row in attached.kernel.ps.now() if row.server == server)
    os.kill(pid, signal.SIGKILL)
    while next(
        (row.pid == pid or row.state != "serving") and row.state != "failed"
        for row in attached.kernel.ps.now()
        if row.server == server
    ):
        pass


def test_a_grant_that_its_holder_cannot_pay_for_is_none(tmp_path: Path) -> None:
    with booted(tmp_path, more=SMALL.format(channels=2)) as node:
        with node.attach() as attached:
            grant(attached, "counter", "babbler")
            with pytest.raises(QuotaExceeded):
                grant(attached, "teller", "babbler")
            assert held(attached, "babbler") == ["counter"]
        assert node.stop() == 0
        node.boot()
        with node.attach() as attached:
            assert held(attached, "babbler") == ["counter"]


def test_no_limit_keeps_a_server_down_that_was_granted_more_before(tmp_path: Path) -> None:
    with booted(tmp_path, more=SMALL.format(channels=3)) as node:
        with node.attach() as attached:
            grant(attached, "counter", "babbler")
            grant(attached, "teller", "babbler")
        assert node.stop() == 0
        node.image.write_text(node.image.read_text().replace("channels = 3", "channels = 2"))
        node.boot()
        with node.attach() as attached:
            assert held(attached, "babbler") == ["counter", "teller"]
            kill(attached, "babbler")
            row = next(row for row in attached.kernel.ps.now() if row.server == "babbler")
            assert (row.state, row.restarts) == ("serving", 1)


def test_who_asks_for_what_it_cannot_be_given_pays_nothing(narrow: RealNode) -> None:
    with ExitStack() as stack:
        attached = stack.enter_context(narrow.attach())
        number = attached.kernel.open.now("counter", "Counter").number
        others = [stack.enter_context(narrow.attach()) for _ in range(2)]
        others[0].open("counter", Counter)
        others[0].open("teller", Teller)

        def of_the_account() -> int:
            return sum(row.holder.startswith("@") for row in attached.kernel.caps.now())

        before = of_the_account()
        with pytest.raises(QuotaExceeded):
            others[1].kernel.open.now("counter", "Counter")
        assert of_the_account() == before
        attached.kernel.revoke.now(number)


PURSE = f"""
[account.small]
capabilities = 4

[keyspace.ledger]

[server.ledger]
package = "{PACKAGES}/ledger"
needs = {{ rows = {{ keyspace = "ledger", rights = ["read", "write"] }} }}

[server.purse]
package = "{PACKAGES}/purse"
account = "small"

[server.purse.needs]
rows = {{ keyspace = "counter", rights = ["read", "write"] }}
ledger = {{ server = "ledger", rights = ["write"] }}
"""


def test_callers_of_a_server_whose_needs_cannot_be_paid_for_are_told(tmp_path: Path) -> None:
    with booted(tmp_path, more=PURSE) as node, node.attach() as attached:
        purse = attached.open("purse", interface("purse", "Purse"))
        grant(attached, "counter", "purse")
        needs = [row.number for row in attached.kernel.caps.now("purse") if row.server in ("state", "ledger")]
        for number in needs:
            attached.kernel.revoke.now(number)
            grant(attached, "counter", "purse")
        with pytest.raises(QuotaExceeded):
            attached.kernel.restart.now("purse")
        row = next(row for row in attached.kernel.ps.now() if row.server == "purse")
        assert row.state == "failed"
        assert "capabilities" in row.reason
        with pytest.raises(PeerDied):
            purse.with_(deadline=5.0).move.now("x", 1)
        granted = [row.number for row in attached.kernel.caps.now("purse") if row.server == "counter"]
        for number in granted[:2]:
            attached.kernel.revoke.now(number)
        assert attached.kernel.restart.now("purse").state == "serving"


def test_a_list_of_buffers_is_read_however_long(tmp_path: Path) -> None:
    """More of them than one reply of the kernel's holds: a server that learns by it what is its own would lose them."""
    count = 900
    with booted(tmp_path) as node, node.attach() as attached:
        made = [attached.kernel.buffer.start(1, "writable", False, bytes(256)) for _ in range(count)]
        numbers = [each.result().number for each in made]
        with pytest.raises(TooLarge):
            attached.kernel.buffers.now()
        found = attached.kernel.buffers.now(0)
        while page := attached.kernel.buffers.now(found[-1].number):
            found += page
        assert [row.number for row in found] == sorted(numbers)
        assert {row.note for row in found} == {bytes(256)}


def test_a_list_of_buffers_is_whole_for_who_knows_no_parts(tmp_path: Path) -> None:
    """A server of an earlier release: what it is not told of is lost."""
    count = 650
    with booted(tmp_path) as node, node.attach() as attached:
        made = [attached.kernel.buffer.start(1, "writable", False, bytes(256)) for _ in range(count)]
        numbers = {each.result().number for each in made}
        assert {row.number for row in attached.kernel.buffers.now()} == numbers


MANY_RIGHTS = """
from atoll.ipc.interface import Interface, call
from atoll.ipc.serve import Serves


class Many(Interface):
{methods}

class Server(Serves[Many]):
{handlers}
"""


def test_a_list_of_capabilities_is_read_however_long_their_rights_are(tmp_path: Path) -> None:
    names = [f"a_right_of_many_letters_{number}" for number in range(60)]
    methods = "".join(f'    @call("{name}")\n    def {name}_call(self) -> int: ...\n' for name in names)
    handlers = "".join(
        f"    @Many.{name}_call.serve\n    def {name}_call(self) -> int:\n        return 1\n"
        for name in names
    )
    package = tmp_path / "many"
    package.mkdir()
    for module in ("__init__", "interface"):
        (package / f"{module}.py").write_text("")
    (package / "server.py").write_text(MANY_RIGHTS.format(methods=methods, handlers=handlers))
    with booted(tmp_path) as node, node.attach() as attached:
        attached.kernel.load.now(Load(server="many", package=str(package), level="process"))
        opened = attached.kernel.open.now("many").number
        made = [attached.kernel.derive.start(opened) for _ in range(300)]
        wanted = {each.result() for each in made}
        found = attached.kernel.caps.now("many")
        while page := attached.kernel.caps.now("many", found[-1].number):
            found += page
        numbers = [row.number for row in found]
        assert numbers == sorted(set(numbers)) and wanted <= set(numbers)


CROWD = """
import resource, sys
from atoll.ipc.attach import connect
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
nodes = [connect(sys.argv[1]) for _ in range(int(sys.argv[2]))]
print(len(nodes), flush=True)
sys.stdin.read()
for node in nodes:
    node.close()
"""


def test_a_list_of_attachments_is_read_however_long(tmp_path: Path) -> None:
    """Programs say what they are called, and could else hide in a list that nobody can be told."""
    more = "[account.operators]\nchannels = 1000\ndescriptors = 4000"
    with booted(tmp_path, more=more) as node, node.attach() as attached:
        words = [sys.executable, "-c", CROWD, str(node.folder), "400", "\U0001f600" * 200]
        # Its own code is part of what it is called by: the long word goes first.
        words = [words[0], "-X", words[5], *words[1:5]]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as crowd:
            assert crowd.stdout is not None and crowd.stdin is not None
            assert crowd.stdout.readline() == b"400\n"
            found = attached.kernel.attachments.now()
            while page := attached.kernel.attachments.now(found[-1].number):
                found += page
            assert len({row.number for row in found}) == len(found) == 401
            crowd.stdin.close()
