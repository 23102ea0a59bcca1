"""The hierarchy of errors: sentences, the way over the wire, what this side does not know."""

import pickle
from typing import ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.ipc import errors
from atoll.ipc.errors import AtollError, CallerFault, Failure, InternalFault, PeerFault

EXAMPLES: list[tuple[AtollError, type[AtollError], str]] = [
    (
        errors.NotAllowed("Counter.add", "write", ("read", "list")),
        CallerFault,
        (
            "Counter.add needs the right 'write', and this capability holds 'read', 'list': "
            "ask its grantor for 'write'"
        ),
    ),
    (
        errors.NotAllowed("Counter.add", "write"),
        CallerFault,
        (
            "Counter.add needs the right 'write', and this capability holds no right: "
            "ask its grantor for 'write'"
        ),
    ),
    (
        errors.Revoked("Counter.add"),
        CallerFault,
        "the capability for Counter.add was revoked or has expired: ask its grantor for a new one",
    ),
    (
        errors.QuotaExceeded("web", "channels", 16),
        CallerFault,
        "account 'web' has used its 16 of channels: release some, or raise the quota in the image",
    ),
    (
        errors.Incompatible("Counter", ("expected int, got str, at Counter.add(by)",)),
        CallerFault,
        (
            "interface 'Counter' differs from what the server offers: "
            "expected int, got str, at Counter.add(by): update the older side"
        ),
    ),
    (
        errors.BadRequest("Counter.add(by)", "`int`", "`str`"),
        CallerFault,
        "Counter.add(by): expected `int`, got `str`",
    ),
    (
        errors.TooLarge("a request for Counter.add", 20, 10),
        CallerFault,
        (
            "a request for Counter.add has 20 bytes, and 10 is the limit: "
            "send it in pieces (an upload or a stream) or in a Buffer"
        ),
    ),
    (
        errors.NotFound("server", "conter", "counter"),
        CallerFault,
        "there is no server 'conter': did you mean 'counter'?",
    ),
    (errors.NotFound("server", "x"), CallerFault, "there is no server 'x': look at the names that exist"),
    (
        errors.NotFound("value", "x", "y", see="atoll history rows x"),
        CallerFault,
        "there is no value 'x': see `atoll history rows x`",
    ),
    (
        errors.WouldBlock("Audit.note", "Counter.add"),
        CallerFault,
        (
            "Counter.add made the blocking call Audit.note.now, which would halt its server's loop: "
            "make the handler `async def` and await the call, or return a Deferred"
        ),
    ),
    (
        errors.Purged("whom the row 'a' is about"),
        CallerFault,
        "whom the row 'a' is about was purged, and nobody can read it any more: leave it out, or delete it",
    ),
    (
        errors.Overloaded("Counter.add"),
        PeerFault,
        (
            "Counter.add has as many calls in hand as it takes, and this one was not begun: "
            "try again later, or more slowly"
        ),
    ),
    (
        errors.DeadlineExceeded("Counter.add", 0.5),
        PeerFault,
        "Counter.add did not end within 0.5 s: allow more time, or ask for less",
    ),
    (
        errors.DeadlineExceeded("Counter.add"),
        PeerFault,
        (
            "Counter.add did not end within the deadline of the call that it is part of: "
            "allow more time, or ask for less"
        ),
    ),
    (
        errors.PeerDied("Counter.add"),
        PeerFault,
        "the server ended while Counter.add was in its hands, outcome unknown: look before trying again",
    ),
    (
        errors.PeerDied("Counter.add", outcome_unknown=False),
        PeerFault,
        "the server ended before it took Counter.add: try again",
    ),
    (
        errors.PeerMisbehaved("the reply of Counter.add", "length"),
        PeerFault,
        "the reply of Counter.add: the other side broke the protocol (length)",
    ),
    (errors.NodeDown(), PeerFault, "the node is down: boot it again with `atoll boot`"),
    (
        errors.Aborted("the transaction", "its deadline is over"),
        PeerFault,
        "the transaction was aborted and nothing was written: its deadline is over; begin it again",
    ),
    (
        errors.Conflict(b"k", 3, 5),
        PeerFault,
        "key b'k' was expected at revision 3 and is at 5: read it again and repeat",
    ),
    (
        errors.Conflict(b"k", 3, 5, "rows"),
        PeerFault,
        "key b'k' of keyspace 'rows' was expected at revision 3 and is at 5: read it again and repeat",
    ),
    (
        errors.Conflict(b"", 3, 5, "rows"),
        PeerFault,
        "a key of keyspace 'rows' was expected at revision 3 and is at 5: read it again and repeat",
    ),
    (
        errors.Conflict(b"k", -1, 5, "rows"),
        PeerFault,
        "key b'k' of keyspace 'rows' was expected not to have been written and is at 5: read it again and repeat",
    ),
    (
        errors.DrainTimedOut({"Counter.add": 1, "Counter.get": 2}),
        PeerFault,
        (
            "3 calls were still in hand at the drain deadline (1 of Counter.add, 2 of Counter.get): "
            "the old version runs on; allow more time, or end them with --force"
        ),
    ),
    (
        errors.WorkflowCancelled("order-17"),
        PeerFault,
        "workflow 'order-17' was cancelled: go on with it by `atoll flow resume`, or begin another one",
    ),
    (
        errors.Sealed("words", "the keyring is locked"),
        PeerFault,
        "private keyspace 'words' stays sealed: the keyring is locked",
    ),
    (
        InternalFault("Counter.add", "ZeroDivisionError: x"),
        InternalFault,
        (
            "Counter.add failed inside its server, which raised ZeroDivisionError: x: "
            "this is a bug there; its log has the traceback"
        ),
    ),
]


class Spent(Failure):
    key: str
    left: int = 0
    template = "counter {key!r} has {left} left"


class Told(Failure):
    key: bytes

    @property
    def message(self) -> str:
        return f"about {self.key!r}"


class Declared:
    failures: ClassVar[dict[int, type[Failure]]] = {Spent.number: Spent, Told.number: Told}


@pytest.mark.parametrize(("error", "branch", "sentence"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_an_error_is_one_sentence_in_its_branch(
    error: AtollError, branch: type[AtollError], sentence: str
) -> None:
    assert str(error) == sentence
    assert isinstance(error, branch)


@pytest.mark.parametrize("error", [error for error, _, _ in EXAMPLES], ids=lambda error: type(error).__name__)
def test_a_built_in_error_arrives_as_itself(error: AtollError) -> None:
    found = errors.decode(errors.encode(error))
    assert type(found) is type(error)
    assert found == error
    assert str(found) == str(error)


def test_every_built_in_error_has_a_number_of_its_own() -> None:
    kinds = list(errors._built_in.values())
    assert len({kind.number for kind in kinds}) == len(kinds)
    assert {type(error) for error, _, _ in EXAMPLES} == set(kinds)


@given(st.text(), st.integers(-(2**63), 2**64 - 1))
def test_a_declared_failure_arrives_as_the_same_class(key: str, left: int) -> None:
    sent = Spent(key, left)
    found = errors.decode(errors.encode(sent), Declared)
    assert found == sent
    assert str(found) == f"counter {key!r} has {left} left"


def test_a_failure_with_a_message_of_its_own_tells_it_on_both_sides() -> None:
    assert str(errors.decode(errors.encode(Told(b"\xff")), Declared)) == "about b'\\xff'"


def test_a_failure_that_this_side_does_not_know_reads_the_same() -> None:
    found = errors.decode(errors.encode(Spent("x", 3)))
    assert isinstance(found, errors.UnknownFailure)
    assert (found.name, found.details) == ("Spent", {"key": "x", "left": 3})
    assert (
        str(found) == "the server answered with Spent, which this side does not know: counter 'x' has 3 left"
    )
    again = errors.decode(errors.encode(found), Declared)
    assert again == Spent("x", 3)


def test_a_field_that_a_newer_side_added_is_passed_over_and_a_missing_one_takes_its_default() -> None:
    newer = msgspec.msgpack.encode((Spent.number, "Spent", {"key": "x", "since": 4}, "..."))
    assert errors.decode(newer, Declared) == Spent("x", 0)


@given(st.binary(max_size=64))
def test_bytes_that_are_no_error_are_the_peers_misbehaviour(data: bytes) -> None:
    assert isinstance(errors.decode(data, Declared), AtollError)


def test_a_declared_failure_with_fields_of_other_types_is_misbehaviour() -> None:
    wrong = msgspec.msgpack.encode((Spent.number, "Spent", {"key": 5}, "..."))
    assert isinstance(errors.decode(wrong, Declared), errors.PeerMisbehaved)


def test_fields_are_given_once_and_for_all() -> None:
    error = Spent("x", left=3)
    with pytest.raises(AttributeError, match=r"Spent\.left cannot be changed"):
        error.left = 4  # type: ignore[misc]
    for args, fields, told in [
        ((), {}, "needs the field 'key'"),
        (("x", 1, 2), {}, "got 3 values"),
        (("x",), {"key": "y"}, "two values for the field 'key'"),
        (("x",), {"keys": "y"}, "no field 'keys'"),
    ]:
        with pytest.raises(TypeError, match=told):
            Spent(*args, **fields)  # type: ignore[arg-type]


def test_an_error_survives_pickling() -> None:
    assert pickle.loads(pickle.dumps(Spent("x", 3))) == Spent("x", 3)


def test_a_hint_says_that_there_are_more_names_only_if_there_are() -> None:
    names = [f"name {number:02}" for number in range(13)]
    assert str(errors.NotFound.among("server", "x", names[:12])).endswith(
        " choose one of " + ", ".join(names[:12])
    )
    assert str(errors.NotFound.among("server", "x", names)).endswith(f" {names[11]}, ...")
