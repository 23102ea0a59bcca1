"""What servers log by the usual means is rows with fields."""

from atoll.ipc.system.records import LOG, LogRow, decode

from .conftest import Recording, interface


def test_every_way_to_log_makes_a_row_with_fields(recording: Recording) -> None:
    attached = recording.attached
    lines = attached.keyspace(LOG, ["read", "history"])
    head = lines.head.now()
    attached.open("scribe", interface("scribe", "Scribe")).write.now("it is told")
    found: dict[str, LogRow] = {}
    for change in lines.watch.now(head):
        rows = [decode(LogRow, item.value or b"") for item in change.items]
        found |= {row.fields["by"]: row for row in rows if row.text == "it is told"}
        if len(found) == 5:
            break
    assert {row.level for row in found.values()} == {"warning", "error"}
    assert all(row.server == "scribe" for row in found.values())
    assert found["call"].fields["count"] == "1"
    assert found["logging"].fields["logger"] == "scribe"
    assert (found["structlog"].fields["count"], found["structlog"].fields["text"]) == ("3", "a field")
    assert found["exception"].fields["traceback"].endswith("ValueError: it is told\n")
    in_hand = [row for by, row in found.items() if by != "thread"]
    assert {row.fields["method"] for row in in_hand} == {"Scribe.write"}
    assert len({row.fields["trace"] for row in in_hand}) == 1
