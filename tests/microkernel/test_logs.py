"""What servers say, under a flood of it."""

from atoll.ipc.system.kernel import LogRow

from .nodes import RealNode, interface

Counter = interface("counter", "Counter")


def test_a_server_that_floods_its_output_drowns_nobody(node: RealNode) -> None:
    """Lines beyond what may become rows are counted and dropped; what others said stays, and the kernel answers."""
    with node.attach() as attached:
        attached.kernel.freeze.now("teller", "to be remembered")
        attached.kernel.thaw.now("teller")
        done = attached.open("counter", Counter).flood.start(300_000)
        for _ in range(20):  # it answers meanwhile
            attached.kernel.ps.now()
        done.result()
        lines: list[LogRow] = []
        for line in attached.kernel.logs.now():
            lines.append(line)
            if "lines were dropped" in line.text:
                break
        assert any(line.server == "teller" and "to be remembered" in line.text for line in lines)
        assert sum(line.text == "x" for line in lines) < 20_000
        (wordy,) = [line for line in lines if line.text == "wordy"]
        assert sum(map(len, wordy.fields.values())) <= 8192 + 100
