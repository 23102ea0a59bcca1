"""The beginning of a buffer, read again and again at a few lengths: the view of a length is kept.

To cut a view costs more than the rest of a short message. To cut all of them beforehand was a tenth of a server's start.
"""


class Views:
    """Of `buffer`, for lengths below `most`; longer ones are cut each time."""

    __slots__ = ("_buffer", "kept")

    def __init__(self, buffer: memoryview, most: int) -> None:
        self._buffer = buffer
        self.kept: list[memoryview | None] = [None] * most
        """By length: the view, once it was cut."""

    def cut(self, length: int) -> memoryview:
        """The view of a length below `most`, kept from now on."""
        view = self.kept[length] = self._buffer[:length]
        return view

    def copy(self, length: int) -> bytes:
        if length >= len(self.kept):
            return self._buffer[:length].tobytes()
        return (self.kept[length] or self.cut(length)).tobytes()
