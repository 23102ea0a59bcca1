"""What it costs that a server's calls are recorded."""

from pathlib import Path

from .frame import Contestant, Goal, Race, Row, Survey
from .node import recorded
from .peers import blocks
from .placement import one_core, two_cores

AS_EVER = "not recorded"
RECORDED = "recorded for replay"


def rows(scratch: Path) -> list[Row]:
    node = recorded.booted(scratch)
    return [
        *(
            Race(
                group="record",
                name=f"typed call, 64 B, {placement.name}{where}",
                unit="µs",
                contestants=[
                    Contestant(RECORDED, blocks.blocking(recorded.at(node, recorded.RECORDED), method)),
                    Contestant(AS_EVER, blocks.blocking(recorded.at(node, recorded.PLAIN), method)),
                    Contestant(
                        "a row of 64 calls", blocks.blocking(recorded.at(node, recorded.SAMPLED), method)
                    ),
                    Contestant(
                        "a row a call, none dropped",
                        blocks.blocking(recorded.at(node, recorded.FULL), method),
                    ),
                ],
                subject=RECORDED,
                goals=[Goal("<=", 1.15, AS_EVER)],
                placement=placement,
                rounds=15,
                bias="A block is 50 ms: what is put away meanwhile is written by other processes on the same cores.",
            )
            for placement in (two_cores(), one_core())
            if placement
            for where, method in (("", "exchange"), (", async handler", "exchange_async"))
        ),
        Survey("record", "calls as fast as they go", lambda: recorded.kept(node)),
    ]
