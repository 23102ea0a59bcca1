"""Each wrong image is refused with exactly the message beside it; a right one is not."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from atoll.microkernel.descriptions import describe_copies
from atoll.microkernel.image_check import Checked, check, load, read_file
from atoll.microkernel.image_read import ImageRefused
from atoll.microkernel.processes import Forge
from atoll.microkernel.protection import probe

HERE = Path(__file__).parent
WRONG = sorted((HERE / "wrong").glob("*.toml"))


@pytest.fixture(scope="module")
def loading() -> Iterator[Callable[[Path], Checked]]:
    """`load`, with one fork server for all images."""
    forge = Forge("--test=images")
    forge.start()
    yield lambda path: trio.run(check, read_file(path), path.parent, partial(describe_copies, forge, probe()))
    trio.run(forge.close)


@pytest.mark.parametrize("image", WRONG, ids=lambda path: path.stem)
def test_a_wrong_image_is_refused_with_its_message(
    image: Path, loading: Callable[[Path], Checked], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(HERE)
    with pytest.raises(ImageRefused) as caught:
        loading(image.relative_to(HERE))
    assert str(caught.value) + "\n" == image.with_suffix(".txt").read_text()


def test_each_wrong_image_has_a_message_and_each_message_an_image() -> None:
    assert len(WRONG) >= 30
    assert {path.stem for path in WRONG} == {path.stem for path in (HERE / "wrong").glob("*.txt")}


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    image = tmp_path / "image.toml"
    image.write_bytes(b"[image]\nname = \xff\n")
    with pytest.raises(ImageRefused, match=r"image.toml:1:1: expected UTF-8 text, found the byte 0xff"):
        load(image)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    """As some editors write it; the places of what is wrong do not count it."""
    image = tmp_path / "image.toml"
    image.write_bytes(b'\xef\xbb\xbf[image]\nnam = "x"\n')
    with pytest.raises(ImageRefused, match=r'image.toml:2:1: image.nam: expected .* did you mean "name"\?'):
        load(image)


RIGHT = """
[image]
name = "right"

[slice.high]
priority = 9

[keyspace.counts]
retention = "90d"

[server.state]
package = "PACKAGES/store"
slice = "high"
needs = { folder = { folder = "store" } }

[server.counter]
package = "PACKAGES/counter"
level = "sandbox"
drop = [{ mechanism = "landlock", reason = "it writes where it likes" }]
needs = { rows = { keyspace = "counts", rights = ["read", "write"] }, config = { config = { step = 2 } } }

[server.first]
package = "PACKAGES/relay"
needs = { further = { server = "second", rights = ["send"], badge = "" } }

[server.second]
package = "PACKAGES/relay"
slice = "high"
allow = [{ calls = "network", reason = "it answers on a socket" }]
needs = { door = { listen = "127.0.0.1:0" } }

[[attach]]
uid = "1000-1999"
may = [{ server = "counter", interface = "Counter", rights = ["read"] }]

[[attach]]
any = true
operator = true
may = []
"""


@pytest.fixture
def right(tmp_path: Path) -> Path:
    image = tmp_path / "right.toml"
    image.write_text(RIGHT.replace("PACKAGES", str(HERE / "packages")))
    return image


def test_a_right_image_is_described(right: Path) -> None:
    checked = load(right)
    assert checked.packages["counter"] == HERE / "packages" / "counter"
    assert [offer.name for offer in checked.descriptions["counter"].interfaces] == ["Counter", "Admin"]
    assert checked.descriptions["counter"].interfaces[0].rights == ("read", "write")
    assert checked.descriptions["first"].needs["further"].interface == "Relay"
    assert checked.image.level("first") == "sandbox"
    assert checked.image.priority("second") == 9
    assert checked.image.keyspace["counts"].retention == 90 * 86400
