"""The graph of an image: every capability and every weakening is in the text, and in the picture."""

import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from atoll.microkernel.graph import dot, graph, plain, svg, text
from atoll.microkernel.image_check import load

PACKAGES = Path(__file__).parent.parent / "images" / "packages"

IMAGE = f"""
[image]
name = "drawn"

[slice.low]
priority = 1

[keyspace.counts]

[server.state]
package = "{PACKAGES}/store"
slice = "low"
needs = {{ folder = {{ folder = "store" }} }}

[server.counter]
package = "{PACKAGES}/counter"
drop = [{{ mechanism = "landlock", reason = "the kernel is old" }}]
needs = {{ rows = {{ keyspace = "counts", rights = [] }}, config = {{ config = {{ step = 2 }} }} }}

[server.first]
package = "{PACKAGES}/relay"
needs = {{ further = {{ server = "second", rights = ["send"], badge = "" }} }}

[server.second]
package = "{PACKAGES}/relay"
allow = [{{ calls = "network", reason = "it answers on a socket" }}]
needs = {{}}

[[attach]]
uid = 1000
may = [{{ server = "counter", interface = "Counter", rights = ["read"] }}]
"""

TEXT = """\
image drawn: who may call whom
  state (sandbox)
    -> nobody
  counter (sandbox)
    -> state.keyspace counts  no rights
  first (sandbox)
    -> second.Relay           send
  second (sandbox)
    -> nobody
  uid 1000 (from outside)
    -> counter.Counter        read
the image weakens
  counter: without landlock: the kernel is old
  first: need further is unbadged: it may mint capabilities for every object of second
  second: may make network system calls: it answers on a socket
  counter: priority 5 waits on state of priority 1: whatever keeps state from running keeps counter waiting
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "drawn.toml"
    path.write_text(IMAGE)
    return path


def test_the_text_names_every_capability_and_weakening(image: Path) -> None:
    assert text(graph(load(image))) == TEXT


def test_the_text_names_a_heavy_server_that_the_image_does_not_have_start_by_exec(tmp_path: Path) -> None:
    package = tmp_path / "heavy" / "relay"
    shutil.copytree(PACKAGES / "relay", package)
    server = package / "server.py"
    server.write_text(server.read_text().replace("(Serves[Relay]):", "(Serves[Relay]):\n    heavy = True\n"))
    path = tmp_path / "drawn.toml"
    heavy = IMAGE.replace(f"{PACKAGES}/relay", str(package))
    path.write_text(heavy.replace("[server.second]", '[server.second]\nstart = "exec"'))
    drawn = graph(load(path))
    assert text(drawn) == TEXT.replace("first (sandbox)", "first (sandbox; heavy: starts by exec)")
    assert plain(drawn)["heavy"] == ["first"]


def test_the_picture_has_every_server_and_edge(image: Path) -> None:
    drawn = graph(load(image))
    assert dot(drawn).count(" -> ") == len(drawn.edges)
    if shutil.which("dot") is None:
        pytest.skip("graphviz is not installed: the picture is not drawn")
    picture = svg(drawn)
    assert picture is not None
    root = ElementTree.fromstring(picture)
    titles = {title.text for title in root.iter("{http://www.w3.org/2000/svg}title")}
    assert {"state", "counter", "first", "second", "uid 1000", "first->second", "counter->state"} <= titles
