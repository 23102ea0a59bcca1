"""The boot plan: each rule of the module, on rows and an image."""

from pathlib import Path

from atoll.ipc.system.records import AccountRow, KeyspaceRow, NeedRow, ServerRow, SliceRow
from atoll.microkernel.image import Image
from atoll.microkernel.image_read import read
from atoll.microkernel.plan import Known, plan, text
from atoll.microkernel.versions import Version

TEXT = """
[image]
name = "x"
[slice.fast]
cpu_weight = 400
[keyspace.rows]
versions = 3
[server.state]
needs = {}
[server.counter]
level = "seccomp"
slice = "fast"
needs = {}
"""
VERSIONS = {
    "state": Version("state", "s1", Path("versions/s1")),
    "counter": Version("counter", "c2", Path("versions/c2")),
}


def image() -> Image:
    draft = read(TEXT, "x.toml")
    assert draft.problems == []
    return draft.image


def rows() -> Known:
    first = plan(image(), "old", VERSIONS, Known())
    return Known(servers=tuple(first.servers))


def test_a_first_boot_adds_everything() -> None:
    made = plan(image(), "h", VERSIONS, Known())
    assert text(made) == (
        "add    server state\nadd    server counter\nadd    slice fast\nadd    keyspace rows\n"
    )
    assert [(row.server, row.version, row.level, row.slice) for row in made.servers] == [
        ("state", "s1", "sandbox", ""),
        ("counter", "c2", "seccomp", "fast"),
    ]


def test_the_image_wins_over_what_was_changed_by_hand() -> None:
    state, counter = rows().servers
    changed = ServerRow(
        server="counter", package="counter", version="c9", level="sandbox", image="old", slice="fast"
    )
    made = plan(image(), "h", VERSIONS, Known(servers=(state, changed)))
    assert str(made.steps[0]) == "change server counter (version: c9 -> c2; level: sandbox -> seccomp)"
    assert made.servers[1].version == counter.version


def test_what_a_person_loaded_or_stopped_stays_so() -> None:
    state, _ = rows().servers
    stopped = ServerRow(
        server="counter",
        package="counter",
        version="c2",
        level="seccomp",
        image="old",
        slice="fast",
        stopped=True,
    )
    loaded = ServerRow(server="mine", package="/home/mine", version="m1", level="process", image="")
    made = plan(image(), "h", VERSIONS, Known(servers=(state, stopped, loaded)))
    assert [row.stopped for row in made.servers] == [False, True, False]
    assert made.servers[2] == loaded
    assert "keep   server mine (loaded by a person)" in text(made)


def test_what_the_image_no_longer_names_is_retired_and_its_data_stays() -> None:
    gone = ServerRow(server="gone", package="gone", version="g1", level="sandbox", image="old")
    known = Known(
        servers=(*rows().servers, gone),
        slices=(SliceRow(slice="slow", limits={}),),
        accounts=(AccountRow(account="a", limits={}),),
        keyspaces=(KeyspaceRow(keyspace="rows", badge=4, versions=9), KeyspaceRow(keyspace="old", badge=5)),
    )
    made = plan(image(), "h", VERSIONS, known)
    assert made.retired == ["gone"]
    assert text(made) == (
        "retire server gone (no longer in the image; its keyspaces stay)\n"
        "add    slice fast\nretire slice slow\nretire account a\n"
        "change keyspace rows (versions: 9 -> 3)\n"
        "keep   keyspace old (no longer in the image; what is in it stays)\n"
    )


def test_the_same_image_again_changes_nothing() -> None:
    limits = {
        "cpu_weight": 400, "cpu_quota": None, "memory": None, "pids": None, "io_class": "best-effort",
        "io_weight": 100, "priority": 5,
    }  # fmt: skip
    known = Known(
        servers=rows().servers,
        slices=(SliceRow(slice="fast", limits=limits),),
        keyspaces=(KeyspaceRow(keyspace="rows", badge=4, versions=3),),
    )
    assert text(plan(image(), "h", VERSIONS, known)) == "nothing changes\n"


def test_needs_that_the_image_names_no_more_are_retired() -> None:
    """With those of servers that are gone; but not what stands for a private keyspace's keys, nor what a person bound."""
    private = TEXT.replace("versions = 3", "private = true").replace(
        'slice = "fast"\nneeds = {}',
        'slice = "fast"\nneeds = { rows = { keyspace = "rows", rights = ["read"] }, now = { config = {} } }',
    )
    draft = read(private, "x.toml")
    assert draft.problems == []
    loaded = ServerRow(server="mine", package="p", version="v", level="process", image="", load=b"x")
    names = [("counter", name) for name in ("rows", "rows keys", "now", "old")]
    needs = [NeedRow(server=s, need=n, capability=7) for s, n in (*names, ("mine", "rows"), ("gone", "rows"))]
    known = Known(servers=(*rows().servers, loaded), needs=tuple(needs))
    made = plan(draft.image, "h", VERSIONS, known)
    assert [(row.server, row.need) for row in made.unneeded] == [
        ("counter", "now"), ("counter", "old"), ("gone", "rows")
    ]  # fmt: skip
    said = "retire need counter.old (no longer in the image; its capability ends)"
    assert said in text(made).splitlines()
