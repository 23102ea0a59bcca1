"""Atoll's own rules about its C sources hold; and each check finds what is planted for it."""

import pytest

from .source import CLAIMS, NATIVE, SOURCES, leaks, parsed, patterns, strays


def read(name: str) -> str:
    return (NATIVE / name).read_text()


@pytest.mark.parametrize("name", SOURCES)
def test_shared_memory_is_reached_only_through_the_accessors(name: str) -> None:
    assert not strays(parsed(name))


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_claimed_is_let_go_on_every_path(name: str) -> None:
    assert not leaks(parsed(name), read(name))


def test_every_claim_is_made_somewhere() -> None:
    """A pattern that fits nothing any more checks nothing."""
    seen = set().union(*(patterns(parsed(name), read(name)) for name in SOURCES))
    assert seen == {(number, end) for number in range(len(CLAIMS)) for end in ("begins", "ends")}


def planted(name: str, old: str, new: str) -> str:
    text = read(name)
    assert old in text, f"{name} has changed: plant it elsewhere"
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("loop.c", "if (load_relaxed(&loop->notice->gate))", "if (loop->notice->gate)"),
        ("client.c", "load_relaxed(&channel->peer->load)", "*&channel->peer->load"),
        ("channel.c", "load_relaxed(&index[2 * lane].position)", "index[2 * lane].position"),
        ("channel.c", "copy_bytes(payload, channel->bulk_in + header->bulk,",
         "memcpy(payload, channel->bulk_in + header->bulk,"),
        ("channel.c", "copy_words(out, notice, sizeof *out / sizeof(uint64_t));", "*out = *notice;"),
        ("ring.c", "load_acquire(&ring->consumed->position)",
         "((const struct consumed *)ring->consumed)->position"),
        ("table.c", "load_relaxed(&page->revocations) + 1", "page->reserved[0] + 1"),
        ("wait.c", "store_relaxed(&own->parked, 0);", "own->parked = 0;"),
        ("wait.c", "store_relaxed(&own->parked, 0);", "own->parked++;"),
        ("table.c", "copy_words(out, entry, sizeof *out / sizeof(uint64_t));",
         "memcpy(out, (const void *)entry, sizeof *out);"),
    ],
)  # fmt: skip
def test_a_stray_access_is_found(name: str, old: str, new: str) -> None:
    text = planted(name, old, new)
    line = text[: text.index(new)].count("\n") + 1
    found = strays(parsed(name, text))
    assert (name, line) in {(finding.file, finding.line) for finding in found}, found


@pytest.mark.parametrize(
    ("name", "old", "new", "claim"),
    [
        ("client.c", "    store_relaxed(&channel->bell_due, 1);\n    sending_end(channel);",
         "    if (result)\n        return result;\n    store_relaxed(&channel->bell_due, 1);\n    sending_end(channel);",
         "the lock of the sending side"),
        ("table.c", "    fence_stores(); /* odd", "    if (!value)\n        return;\n    fence_stores(); /* odd",
         "an entry's or notice's odd sequence"),
        ("ring.c", "    ring->position = position + need;\n",
         "    ring->position = position + need;\n    if (!payload)\n        return RING_DONE;\n",
         "a record's place on a ring"),
        ("client.c", "        message->request = header.request;\n",
         "        if (!header.request)\n            continue;\n        message->request = header.request;\n",
         "an approved record"),
        ("loop.c", "    message->needed = 0;\n    if (ref", "    if (!*method)\n        return refusal;\n    if (ref",
         "the window between check and dispatch"),
        ("loop.c", "        window_close(loop);\n        return op(OP_LATE", "        return op(OP_LATE",
         "the window that a check left open"),
        ("client.c", "        if (channel_room(channel, 1)) {\n            park_over(channel->own);\n",
         "        if (channel_room(channel, 1)) {\n", "an end that said it sleeps"),
        ("loop.c", "            park_over(channel->own);\n            return 0; /* those", "            return 0; /* those",
         "an end that said it sleeps"),
    ],
)  # fmt: skip
def test_a_claim_that_leaks_is_found(name: str, old: str, new: str, claim: str) -> None:
    text = planted(name, old, new)
    found = leaks(parsed(name, text), text)
    assert [finding for finding in found if claim in finding.what], found
