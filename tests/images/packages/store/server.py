"""Serves `Store`; needs a folder."""

from pathlib import Path

from atoll.ipc.serve import Config, Serves

from .interface import Store


class Settings(Config):
    limit: int = 1


class Server(Serves[Store]):
    folder: Path
    config: Settings

    @Store.get.serve
    def get(self, key: str) -> str:
        return key

    @Store.put.serve
    def put(self, key: str, value: str) -> None:
        return None
