"""The same rows in a private keyspace and in a plain one: 200 bytes of text, of 100 subjects."""

from msgspec import Struct

from atoll.ipc import Deferred, Keyspace, Private, Serves

from .interface import Words

ROWS = 1000
SUBJECTS = 100


class Text(Struct):
    subject: str
    text: str


def key_of(number: int) -> str:
    return f"rating/{number % ROWS:08}"


def text_of(number: int) -> Text:
    return Text(f"rater {number % SUBJECTS}", "x" * 200)


class Server(Serves[Words]):
    plain: Keyspace[Text]
    sealed: Private[Text]

    async def start(self) -> None:
        self.plain.keep_remote()

    def _rows(self, sealed: bool) -> Keyspace[Text]:
        return self.sealed if sealed else self.plain

    @Words.write.serve
    def write(self, key: int, sealed: bool) -> Deferred[int]:
        return self._rows(sealed).put(key_of(key), text_of(key))

    @Words.read.serve
    async def read(self, key: int, sealed: bool) -> int:
        found = await self._rows(sealed).get(key_of(key))
        return 0 if found is None else len(found.text)

    @Words.scan.serve
    async def scan(self, key: int, count: int, sealed: bool) -> int:
        return len([row async for row in self._rows(sealed).range(key_of(key), limit=count)])
