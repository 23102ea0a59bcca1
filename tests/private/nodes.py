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
needs = {{}}

[server.keys.needs]
keyring = {{ folder = "keyring" }}
root = {{ folder = "root" }}
rows = {{ keyspace = "keys", rights = ["read", "write"] }}
config = {{ config = {{ {config} }} }}

[server.diary]
package = "{packages}/diary"
needs = {{ words = {{ keyspace = "diary", rights = ["read", "write", "history", "purge"] }} }}
{more}
"""


def image(level: str = "sandbox", config: str = "", more: str = "") -> str:
    return IMAGE.format(level=level, config=config, packages=PACKAGES, more=more)


def diary(node: Attached) -> Diary:
    return node.open("diary", Diary)


def keys(node: Attached) -> Keys:
    return node.open("keys", Keys)
