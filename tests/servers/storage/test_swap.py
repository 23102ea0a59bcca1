"""A swap in the middle of a collection: the next version never counts on a file that the last one removes."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atoll.servers.storage.blobs import NewPack
from atoll.servers.storage.interface import BlobRef, Storage
from atoll.servers.storage.server import Server, Settings

CONFIG = Settings(grace=3600.0, collect_every=0.0)


def test_a_swap_while_a_pack_is_written_anew_loses_nothing(serve: Callable[..., Any], tmp_path: Path) -> None:
    """The pack is on the disk when the state is handed over, so the next version reads it and trusts it."""
    old = serve(Server, folder=tmp_path, config=CONFIG)
    storage: Storage = old.client(badge=1)
    contents = [f"text {number}".encode() for number in range(3)]
    refs = [storage.put.now([content]) for content in contents]
    storage.refer.now([ref.hash for ref in refs], "owner", "name")

    written, go_on = threading.Event(), threading.Event()
    blobs = old.server._blobs
    write = blobs.write_pack

    def held(*arguments: Any) -> NewPack:
        new: NewPack = write(*arguments)
        written.set()
        assert go_on.wait(60)
        return new

    blobs.write_pack = held
    collecting = storage.collect.start()
    assert written.wait(60)
    over = threading.Event()

    def hand_over() -> None:
        old.server.hand_over()
        over.set()

    old.host.submit(hand_over)
    assert over.wait(60)

    new = serve(Server, folder=tmp_path, config=CONFIG)
    go_on.set()
    collecting.result()
    old.stop()
    new.advance(CONFIG.grace + 1)
    new.client().collect.now()
    new.stop()
    last: Storage = serve(Server, folder=tmp_path, config=CONFIG).client()
    assert last.get_many.now([ref.hash for ref in refs]) == contents


def test_many_putters_of_the_same_and_of_other_content_beside_collections(serve: Any, tmp_path: Path) -> None:
    """Every acknowledged blob is there and whole, whoever put it first, while collections run all the time."""
    served = serve(Server, folder=tmp_path, config=CONFIG)
    shared = [bytes([number]) * (100_000 if number % 2 else 100) for number in range(20)]
    done: list[int] = []

    def put(number: int) -> None:
        storage: Storage = served.client(badge=number)
        own = [f"{number}.{count}".encode() * (20_000 if count % 3 else 1) for count in range(10)]
        for content in (*shared[number:], *own, *shared[:number]):
            ref = storage.put.now(content[at : at + 60_000] for at in range(0, len(content), 60_000))
            assert ref == BlobRef.of(content)
            storage.refer.now([ref.hash], "o", ref.hash.hex())
            served.advance(CONFIG.grace / 10)
        for content in (*shared, *own):
            pieces = storage.get.now(BlobRef.of(content).hash)
            assert b"".join(piece.data for piece in pieces) == content
        done.append(number)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    keeper: Storage = served.client()
    while any(thread.is_alive() for thread in threads):
        keeper.collect.now()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(8))
    told = keeper.verify.now()
    assert (told.blobs, told.damaged, told.missing) == (100, [], [])
    assert list((tmp_path / "tmp").glob("*/*")) == []
