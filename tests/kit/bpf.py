"""What a seccomp program says of a system call: classic BPF, interpreted (Linux: Documentation/networking/filter.rst and
include/uapi/linux/seccomp.h), and the numbers of system calls by the C library's headers, not libseccomp's."""

import re
import struct
import subprocess
from typing import NamedTuple

LOAD, ALU, JUMP, RETURN = 0x00, 0x04, 0x05, 0x06
ALLOW, KILL_PROCESS, ERRNO, NOTIFY = 0x7FFF0000, 0x80000000, 0x00050000, 0x7FC00000
DEFINED = re.compile(r"^#define (__NR\w+) (\w+)$", re.MULTILINE)
NO_CALLS = {"arch_specific_syscall", "syscalls"}
"""Bounds that the headers define beside the numbers."""


class Call(NamedTuple):
    """A system call as a filter sees it."""

    number: int
    machine: int
    """AUDIT_ARCH_*."""
    arguments: tuple[int, int, int, int, int, int] = (0, 0, 0, 0, 0, 0)


def verdict(program: bytes, call: Call) -> int:
    """The SECCOMP_RET_* value. Raises ValueError for what seccomp would not load."""
    data = struct.pack("=iIQ6Q", call.number, call.machine, 0, *call.arguments)
    instructions = list(struct.iter_unpack("=HBBI", program))
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, operand = instructions[at]
        at += 1
        if code == LOAD | 0x20:  # a word of the data
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif code == ALU | 0x50:
            accumulator &= operand
        elif code == JUMP:
            at += operand
        elif code == JUMP | 0x10:
            at += if_true if accumulator == operand else if_false
        elif code == JUMP | 0x20:
            at += if_true if accumulator > operand else if_false
        elif code == JUMP | 0x30:
            at += if_true if accumulator >= operand else if_false
        elif code == RETURN:
            return int(operand)
        else:
            raise ValueError(
                f"instruction {at - 1} has the code {code:#x}, which no filter of libseccomp has"
            )


def numbers(compiler: str) -> dict[str, int]:
    """By name the number of each system call of the machine that `compiler` builds for."""
    words = [compiler, "-E", "-dM", "-x", "c", "-"]
    said = subprocess.run(
        words, input="#include <asm/unistd.h>\n", capture_output=True, text=True, check=True
    )
    defined = dict(DEFINED.findall(said.stdout))
    # Some are defined by way of another: __NR_lseek is __NR3264_lseek, which is 62.
    values = {name: defined.get(value, value) for name, value in defined.items() if name.startswith("__NR_")}
    return {
        name: int(value)
        for prefixed, value in values.items()
        if (name := prefixed.removeprefix("__NR_")) not in NO_CALLS and value.isdigit()
    }
