"""Level `seccomp`: a list of system calls that are let through, and no capabilities."""

import msgspec

from . import filters
from .confinement import Confinement
from .host import Host
from .level import Absence, Level, Mechanism, Subject, always


def _no_capabilities(confinement: Confinement, subject: Subject, host: Host) -> Confinement:
    return msgspec.structs.replace(confinement, drop_capabilities=True)


def _no_filters(host: Host) -> Absence | None:
    return Absence(host.filters) if host.filters else None


def _unseen(host: Host) -> str:
    return f"refusals end the process instead of being recorded: {host.notify}" if host.notify else ""


def _system_calls(confinement: Confinement, subject: Subject, host: Host) -> Confinement:
    refusal: filters.Refusal = "kill" if host.notify and subject.refusal == "notify" else subject.refusal
    return msgspec.structs.replace(
        confinement,
        filter=filters.export(subject.grants, refusal),
        notify=refusal == "notify",
        no_new_privileges=True,  # the kernel takes a filter from an ordinary process only so
    )


LEVEL = Level(
    name="seccomp",
    rank=20,
    mechanisms=(
        Mechanism(
            name="no-capabilities",
            stops="everything that asks for a privilege, also in namespaces",
            absent=always,
            apply=_no_capabilities,
        ),
        Mechanism(
            name="system-calls",
            stops="system calls that are not in the table: most of the kernel, signals, tracing, new sockets",
            absent=_no_filters,
            apply=_system_calls,
            partial=_unseen,
        ),
    ),
)
