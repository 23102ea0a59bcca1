import shutil

import pytest

from tests.fuzz.build import ARM64


@pytest.fixture(scope="session", autouse=True)
def cross_tools() -> None:
    """Skips where there is no cross compiler or no emulator, and says how to get them."""
    if missing := [tool for tool in (ARM64.compiler, *ARM64.runner) if shutil.which(tool) is None]:
        pytest.skip(
            f"{' and '.join(missing)} not there: "
            "apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"
        )
