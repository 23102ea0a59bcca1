"""What the main job found, as a person reads it. Every number in it was measured in this run."""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from atoll.ipc.system.kernel import NodeRow, ProcessRow, Protection, Swapped

from .interface import RolledBack
from .job_load import Endured
from .job_submission import Submitted
from .rows import head_key

_HASH_SHOWN = 16
"""Digits of a set's hash that tell it from another one by eye."""


@dataclass(frozen=True)
class CallTimes:
    """Of a plain typed call: one after the other, and many outstanding at a time."""

    method: str
    level: str
    seconds: float
    """Of one call, the median of those made one after the other."""
    pipelined: float
    """Calls a second."""


@dataclass(frozen=True)
class TaskSets:
    """A task's training set, by number of records."""

    task: str
    before: int
    """As of the revision before the roll-back, read before it."""
    after: int
    """As of the newest revision after the roll-back."""
    content: str
    """A hash of that set: equal for equal feedback, in any run on any node."""
    before_again: int
    """As of the revision before the roll-back, read after it."""
    same_set: bool
    """Whether it held the very same records then."""
    pairs: int
    pair_seconds: float
    same_pairs: bool
    """Whether the same pairs were drawn again, as of the same revision, after the roll-back."""


@dataclass(frozen=True)
class Report:
    node: NodeRow
    processes: list[ProcessRow]
    protections: list[Protection]
    submitted: Submitted
    calls: list[CallTimes]
    before: int
    after: int
    """Revisions around the roll-back."""
    sets: list[TaskSets]
    rolled_back: RolledBack
    swapped: Swapped
    endured: Endured
    seconds: float

    def wrong(self) -> list[str]:
        """Sentences about what did not hold that has to."""
        found: list[str] = []
        if refused := self.submitted.refused:
            found.append(
                f"{len(refused)} batches were refused, first: {refused[0].batch}, {refused[0].reason}"
            )
        if self.endured.errors:
            told = f"{self.endured.errors} of {self.endured.calls} calls failed during the swap"
            found.append(f"{told}, first: {self.endured.first_error}")
        for task in self.sets:
            told = f"the training set of {task.task} as of revision {self.before}"
            if task.before_again != task.before:
                found.append(f"{told} had {task.before} records, and {task.before_again} after the roll-back")
            elif not task.same_set:
                found.append(f"{told} has other records after the roll-back than before it")
            if not task.same_pairs:
                found.append(f"the pairs of {task.task} as of revision {self.before} are not the same again")
        lost = sum(task.before - task.after for task in self.sets)
        if lost != self.rolled_back.records:
            found.append(f"{self.rolled_back.records} records were taken back, and the sets lost {lost}")
        return found


def show(report: Report, console: Console) -> None:
    """Print the report."""
    console.print()
    _where(report, console)
    console.print()
    _how_fast(report, console)
    console.print()
    _what_was_learned(report, console)
    console.print()
    _next(report, console)


def _table(*columns: str, head: bool = True) -> Table:
    """The first column stands left, numbers stand right."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=head)
    for number, title in enumerate(columns):
        table.add_column(title, justify="right" if number else "left", no_wrap=True, overflow="ignore")
    return table


def _of_words(table: Table, number: int) -> None:
    """A column of words, not of numbers: it stands left, and is broken where the terminal is narrow."""
    column = table.columns[number]
    column.justify, column.no_wrap, column.overflow = "left", False, "fold"


def _where(report: Report, console: Console) -> None:
    console.print(f"[bold]What ran where[/]: node {report.node.name}, boot {report.node.boot}")
    table = _table("SERVER", "LEVEL", "IN FORCE", "PID", "UID", "VERSION", "MEMORY")
    for process, protection in zip(report.processes, report.protections, strict=True):
        table.add_row(
            process.server,
            protection.wanted,
            protection.level,
            str(process.pid),
            str(process.uid),
            process.version[:10],
            f"{process.memory / 2**20:.1f} MiB",
        )
    console.print(table)
    whom: dict[tuple[str, str], list[str]] = {}
    for weak in report.node.weakenings:
        whom.setdefault((weak.mechanism, weak.reason), []).append(weak.server)
    for (mechanism, reason), servers in whom.items():
        console.print(f"not enforced for {', '.join(servers)}: {mechanism} ({reason})")


def _how_fast(report: Report, console: Console) -> None:
    done, swapped, endured = report.submitted, report.swapped, report.endured
    console.print("[bold]How fast[/]")
    table = _table("", "", "", head=False)
    _of_words(table, 2)
    table.add_row(
        "reviews sent again" if done.repeated else "reviews submitted",
        f"{done.reviews / done.seconds:,.0f} /s",
        f"{done.reviews:,} reviews, {done.bytes / 2**20:.1f} MiB, {len(done.batches)} batches, durable",
    )
    for task in report.sets:
        table.add_row(
            "preference pairs drawn",
            f"{task.pairs / task.pair_seconds:,.0f} /s",
            f"{task.pairs:,} from {task.before:,} of {task.task}",
        )
    for call in report.calls:
        table.add_row(
            f"typed call {call.method}",
            f"{call.seconds * 1e6:.1f} µs",
            f"{call.pipelined:,.0f} /s pipelined; server at level {call.level}",
        )
    table.add_row(
        f"swap of {swapped.server}",
        f"{swapped.pause * 1e3:.1f} ms",
        f"its pause, under {endured.calls / endured.seconds:,.0f} calls/s",
    )
    table.add_row(
        "longest wait of a call",
        f"{endured.longest * 1e3:.1f} ms",
        f"during the swap; {endured.calls:,} calls, {endured.errors} errors",
    )
    table.add_row("all of the job", f"{report.seconds:.1f} s", "")
    console.print(table)
    if done.repeated or done.renamed:
        console.print(
            f"{done.repeated} of the {len(done.batches)} batches were in the store from an earlier run, and"
            f" only compared; {done.renamed} that it had taken back went in under a new id."
        )


def _what_was_learned(report: Report, console: Console) -> None:
    back = report.rolled_back
    console.print(
        f"[bold]Training sets[/]: batch {back.batch} ({back.records} records) was taken back in revision"
        f" {back.revision}"
    )
    table = _table(
        "TASK",
        f"AS OF {report.before}",
        f"AS OF {report.after}",
        f"HASH AS OF {report.after}",
        f"{report.before} AGAIN",
        "SET AND PAIRS",
    )
    for task in report.sets:
        same = "the same again" if task.same_set and task.same_pairs else "NOT the same again"
        table.add_row(
            task.task,
            f"{task.before:,}",
            f"{task.after:,}",
            task.content[:_HASH_SHOWN],
            f"{task.before_again:,}",
            same,
        )
    console.print(table)


def _next(report: Report, console: Console) -> None:
    batch = report.rolled_back.batch
    console.print("[bold]Where to look next[/], while the node runs")
    table = _table("", "", head=False)
    _of_words(table, 1)
    for command, what in (
        ("atoll ps", "servers, processes, levels"),
        ("atoll top", "the same, live"),
        ("atoll caps", "who may call whom"),
        ("atoll protection show feedback", "what keeps feedback in"),
        ("atoll log feedback", "what it wrote"),
        ("atoll flow ls --all", "the imports: workflows that go on after a crash"),
        (f"atoll history feedback {head_key(batch)}", "the batch, before and after"),
        (
            f"python -P -m atoll.servers.feedback.export {report.sets[0].task} --kind pairs",
            "a training set, as JSON lines",
        ),
        (f"atoll call feedback batch '[\"{batch}\"]'", "the same, through the server"),
    ):
        table.add_row(command, what)
    console.print(table)
