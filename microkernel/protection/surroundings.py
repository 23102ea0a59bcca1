"""What stands around the programs of this host and may keep namespaces from them: Ubuntu's rule for ordinary users, a
container. Read from files, so that it can be told of a host that is not this one."""

from pathlib import Path

from msgspec import Struct

APPARMOR_RULE = "kernel.apparmor_restrict_unprivileged_userns"
MARKS = {".dockerenv": "docker", "run/.containerenv": "podman"}
"""Files that those who make containers leave in them."""
NAMED_BY = "run/systemd/container"
"""Where others name themselves (https://systemd.io/CONTAINER_INTERFACE)."""


class Surroundings(Struct, frozen=True, kw_only=True):
    restricted: bool
    """AppArmor takes every capability from an ordinary user in a user namespace of their own."""
    container: str
    """Who made the container this is, as far as its files tell; empty outside."""

    def keeps_from(self, root: bool, refused: bool) -> str:
        """What of it explains that this user was refused namespaces or mounts, and what to do; empty for nothing."""
        if not refused:
            return ""
        if self.container:
            return (
                f"this is a {self.container} container, whose rules keep namespaces, mounts and keyrings from it: give it "
                "SYS_ADMIN and a seccomp profile that lets them through (docker run --cap-add SYS_ADMIN --security-opt "
                "seccomp=unconfined --security-opt apparmor=unconfined), or boot with --degrade"
            )
        if self.restricted and not root:
            return (
                f"AppArmor lets ordinary users do nothing in their namespaces (sysctl {APPARMOR_RULE} is 1, Ubuntu's "
                "default): load a profile for this Python that says `userns,`, set it to 0, or boot as root"
            )
        return ""


def look(root: Path = Path("/")) -> Surroundings:
    """`root`: the folder that the host's files lie in."""
    marks = [name for mark, name in MARKS.items() if (root / mark).exists()]
    return Surroundings(
        restricted=_text(root / "proc/sys" / APPARMOR_RULE.replace(".", "/")) == "1",
        container=next(iter(marks), _text(root / NAMED_BY)),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
