"""`Diary`: one text."""

from atoll.ipc.interface import Interface, call


class Diary(Interface):
    @call("write")
    def note(self, text: str) -> None: ...
