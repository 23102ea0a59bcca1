"""The C core built for ARM64 and run in an emulator; the sandbox compiled; the filters compared with the kernel's numbers.

The emulator runs on this machine's memory order: what ARM64 may reorder is explored by `tests/model`.
"""
