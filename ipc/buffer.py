"""Granted memory as a value."""

from typing import Literal

BufferMode = Literal["writable", "readonly", "immutable"]


class Buffer:
    """Granted memory, shared without a copy. `mode` is what its seals allow the holder of this grant; `passed` is how a
    message of its owner passes it on, the same unless it says otherwise.

    `view` is the memory itself, for numpy and the like to work on in place. Unless it is immutable others may write it
    meanwhile, and after its owner has revoked it, it reads zeros.
    """

    __slots__ = ("handle", "mode", "passed", "view")

    def __init__(
        self,
        view: memoryview,
        mode: BufferMode = "writable",
        handle: int = 0,
        passed: BufferMode | None = None,
    ) -> None:
        self.view = view if mode == "writable" else view.toreadonly()
        self.mode = mode
        self.handle = handle
        """The transport's number of it."""
        self.passed = passed or mode

    def __len__(self) -> int:
        return self.view.nbytes

    def __repr__(self) -> str:
        return f"<Buffer of {self.view.nbytes} bytes, {self.mode}>"
