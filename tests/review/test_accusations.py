"""Who may say what of whom on the control socket."""

from pathlib import Path

from atoll.ipc.system import control
from tests.microkernel.nodes import booted, interface

Counter = interface("counter", "Counter")


def test_nobody_closes_a_channel_that_is_not_its_own(tmp_path: Path) -> None:
    with booted(tmp_path) as node, node.attach() as victim, node.attach() as liar:
        counter = victim.open("counter", Counter)
        assert counter.add.now("x", 1) == 1
        channels = max(row.channel for row in victim.kernel.channels.now("counter"))
        for number in range(1, channels + 1):
            liar._control.send(control.Misbehaved(channel=number, check="a lie"))
        while not any("accusing" in row.what for row in victim.kernel.refused.now()):
            pass
        assert counter.add.now("x", 1) == 2, "the victim's channel, and the counter's to the store, live on"
