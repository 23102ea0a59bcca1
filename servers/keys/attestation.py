"""Whether a process is what the image's policy says, before it is given a key.

What a process is (its measurement) is said by somebody: here by the node's kernel, which started it. That is a
stand-in for a quote of the machine's own (SEV-SNP, TDX), which would say the same of a virtual machine, signed; it
would be another `Attestation`. The check is the same, whoever says it.
"""

from typing import Protocol

from msgspec import Struct

from atoll.ipc.runtime import own_kernel
from atoll.ipc.system.keys import NotReleased
from atoll.ipc.system.measurement import Measurement


class Attestation(Protocol):
    name: str
    """For `doctor` and `atoll keys`: by whose word, and whether it is a stand-in."""

    async def measured(self, channel: int) -> Measurement:
        """What the process at the other end of a channel of ours is. Raises `NotFound` where it is no server's."""
        ...


class KernelsWord:
    name = "the kernel's word (a software stand-in: nothing signs it)"

    async def measured(self, channel: int) -> Measurement:
        return await own_kernel.kernel().measurement(channel)


class Policy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is given the keys of a keyspace. What is not said is as it is where nothing is said of the keyspace: a
    server of the image, with all the protection that its level has."""

    servers: list[str] = []
    """Names; empty: any server that the image binds to it."""
    versions: list[str] = []
    """Content hashes of its package, or beginnings of them; empty: any."""
    mechanisms: list[str] = []
    """That have to be in force; `atoll protection show` names them."""
    weakened: bool = False
    """Whether a server may have another level than the image wants."""
    loaded: bool = False
    """Whether a server may be one that a person loaded."""

    def hold(self, who: Measurement) -> None:
        """Raises `NotReleased`."""
        for wanted, found in self._departures(who):
            raise NotReleased(who.server, wanted, found)

    def _departures(self, who: Measurement) -> list[tuple[str, str]]:
        lacking = sorted(set(self.mechanisms) - set(who.mechanisms))
        departures = [
            (f"one of {', '.join(self.servers)}", who.server, self.servers and who.server not in self.servers),
            (
                f"version {' or '.join(self.versions)}",
                f"version {who.version}",
                self.versions and not who.version.startswith(tuple(self.versions)),
            ),
            (f"level {who.wanted!r}", f"level {who.level!r}", who.level != who.wanted and not self.weakened),
            (f"{', '.join(lacking)} in force", f"without {', '.join(lacking)}", lacking),
            ("a server of the image", "one that was loaded by hand", not who.image and not self.loaded),
        ]  # fmt: skip
        return [(wanted, found) for wanted, found, departs in departures if departs]
