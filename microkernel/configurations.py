"""What servers are configured with, as rows: written by the boot, load or swap that changes it, and by no other."""

from collections.abc import Collection, Iterable

from atoll.ipc.runtime.describe import Description
from atoll.ipc.system.records import ConfigurationRow

from .changes import Batch
from .image import ConfigBinding
from .specs import Spec


def configurations(spec: Spec, description: Description) -> tuple[ConfigurationRow, ...]:
    """Of each need of a server for configuration; one that nobody gave anything has an empty one."""
    return tuple(
        ConfigurationRow(
            server=spec.name, need=need, given=bound.config if isinstance(bound, ConfigBinding) else {}
        )
        for need, about in description.needs.items()
        if about.kind == "config"
        for bound in [spec.needs.get(need)]
    )


def write_change(
    batch: Batch, before: Collection[ConfigurationRow], now: Iterable[ConfigurationRow]
) -> Batch:
    """Turns the rows `before` into those of `now`."""
    there = {row.key(): row.value() for row in before}
    wanted = {row.key(): row for row in now}
    for row in before:
        if row.key() not in wanted:
            batch.delete_row(row)
    return batch.put(*(row for key, row in wanted.items() if there.get(key) != row.value()))
