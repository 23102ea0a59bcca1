"""Nodes with a private keyspace."""

from pathlib import Path

from atoll.ipc.attach import Node as Attached
from atoll.ipc.system.keys import Keys

from .packages.diary.interface import Diary

PACKAGES = Path(__file__).parent / "packages"
IMAGE = """
[image]
name = "private"

[node]
level = "{level}"

[keyspace.diary]
private = true
[keyspace.keys]

[server.state]
level = "process"
restart = {restart}
needs = {{}}

[server.keys]
restart = {restart}

[server.keys.needs]
keyring = {{ folder = "keyring" }}
root = {{ folder = "root" }}
rows = {{ keyspace = "keys", rights = ["read", "write"] }}
config = {{ config = {{ {config} }} }}

[server.diary]
package = "{packages}/diary"
restart = {restart}
needs = {{ words = {{ keyspace = "diary", rights = ["read", "write", "history", "purge"] }} }}
{more}
"""


AT_ONCE = "{ first = 0, most = 0, limit = 1000, within = 1 }"
"""Whoever kills servers for a living is not to be taken for a loop of crashes."""


def image(level: str = "sandbox", config: str = "", more: str = "") -> str:
    return IMAGE.format(level=level, config=config, packages=PACKAGES, restart=AT_ONCE, more=more)


def diary(node: Attached) -> Diary:
    return node.open("diary", Diary)


def keys(node: Attached) -> Keys:
    return node.open("keys", Keys)
