"""Serves `Counter` and `Admin`; needs rows and a configuration with a required key."""

from atoll.ipc.keyspace import Keyspace
from atoll.ipc.serve import Config, Serves

from .interface import Admin, Counter


class Limits(Config):
    most: int = 10


class Settings(Config):
    step: int
    limits: Limits = Limits()


class Server(Serves[Counter, Admin]):
    rows: Keyspace[int]
    config: Settings

    @Counter.get.serve
    def get(self, key: str) -> int:
        return 0

    @Counter.add.serve
    def add(self, key: str, by: int = 1) -> int:
        return by

    @Admin.reset.serve
    def reset(self) -> None:
        return None
