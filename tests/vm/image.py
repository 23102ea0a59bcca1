"""The machine's disk: Debian 12 from its packages, the locked packages of this checkout, and one ordinary user.

Made once and kept in `~/.cache/atoll/vm`, by what it is made of. Nothing of the checkout itself is on it.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HOUSE = Path(__file__).parents[2]
LOCK = HOUSE / "requirements-dev.lock"
PACKAGES = (
    "linux-image-amd64", "initramfs-tools", "systemd-sysv", "udev", "dbus-user-session", "libpam-systemd",
    "python3", "python3-venv", "libseccomp2", "gcc", "libc6-dev", "procps", "util-linux", "kmod",
)  # fmt: skip
MODULES = ("virtio_pci", "virtio_blk", "ext4")
"""What the kernel needs before it has its disk: the whole of Debian's choice takes an emulated processor a minute to
unpack."""
USER = "debian"
SIZE = "4G"
NEEDED = ("mmdebstrap", "mke2fs")

SMALL_START = f"""
mkdir -p "$1/etc/initramfs-tools/conf.d"
echo MODULES=list > "$1/etc/initramfs-tools/conf.d/atoll"
printf '%s\\n' {" ".join(MODULES)} > "$1/etc/initramfs-tools/modules"
"""
FURNISH = f"""
set -eu
chroot "$1" useradd --create-home --shell /bin/bash {USER}
mkdir -p "$1/var/lib/systemd/linger"
touch "$1/var/lib/systemd/linger/{USER}"
cp -r "$WHEELS" "$1/tmp/wheels"
chroot "$1" python3 -m venv /home/{USER}/venv
chroot "$1" /home/{USER}/venv/bin/pip --quiet install --no-index --find-links /tmp/wheels --no-deps \\
    --require-hashes -r /tmp/wheels/lock
rm -r "$1/tmp/wheels"
chroot "$1" chown -R {USER}: /home/{USER}
cp "$WHEELS/../start" "$1/usr/local/sbin/start"
cp "$WHEELS/../start.service" "$1/etc/systemd/system/"
chroot "$1" systemctl --quiet enable start.service
cp "$1"/boot/vmlinuz-* "$IMAGE/vmlinuz"
cp "$1"/boot/initrd.img-* "$IMAGE/initrd"
mount --bind "$1" "$1/mnt"  # without what is mounted below it
mke2fs -q -t ext4 -d "$1/mnt" "$IMAGE/disk" {SIZE}
umount "$1/mnt"
"""
START = f"""
# As root: hand over to the user what is on the second disk, and switch off.
mkdir -p /checkout
mount -o ro /dev/vdb /checkout
id=$(id -u {USER})
until [ -S /run/user/$id/bus ]; do sleep 1; done
runuser -u {USER} -- env XDG_RUNTIME_DIR=/run/user/$id systemd-run --user --wait --pipe --quiet --collect \\
    -p Delegate=yes -p WorkingDirectory=/home/{USER} /bin/sh /checkout/inside
echo "ended: $?"
systemctl poweroff --force --force
"""
SERVICE = """
[Unit]
After=systemd-user-sessions.service
[Service]
Type=oneshot
ExecStart=/bin/sh /usr/local/sbin/start
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
[Install]
WantedBy=multi-user.target
"""


class Image(NamedTuple):
    folder: Path

    @property
    def disk(self) -> Path:
        return self.folder / "disk"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def start(self) -> Path:
        return self.folder / "initrd"


def image() -> Image:
    """The disk for this checkout's locked packages, made if it is not kept. Needs the network then. Raises
    CalledProcessError."""
    steps = "".join((*PACKAGES, SMALL_START, FURNISH, START, SERVICE))
    made_of = hashlib.blake2b(steps.encode() + LOCK.read_bytes(), digest_size=6).hexdigest()
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atoll" / "vm"
    found = Image(kept / made_of)
    if not found.disk.exists():
        shutil.rmtree(kept, ignore_errors=True)
        _make(found.folder)
    return found


def _make(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        wheels = Path(scratch, "wheels")
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        fetched = [*pip, "download", "--no-deps", "--require-hashes", "-r", str(LOCK), "-d", str(wheels)]
        subprocess.run(fetched, check=True)
        shutil.copy(LOCK, wheels / "lock")
        Path(scratch, "start").write_text(START)
        Path(scratch, "start.service").write_text(SERVICE)
        made = Path(scratch, "image")
        made.mkdir()
        command = [
            "mmdebstrap", "--quiet", "--variant=minbase", "--format=null", f"--include={','.join(PACKAGES)}",
            f"--essential-hook={SMALL_START}", f"--customize-hook={FURNISH}",
            "bookworm", "/dev/null", "http://deb.debian.org/debian",
        ]  # fmt: skip
        subprocess.run(command, env=os.environ | {"WHEELS": str(wheels), "IMAGE": str(made)}, check=True)
        made.rename(folder)
