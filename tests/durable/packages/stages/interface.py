from atoll.ipc import Failure, Interface, call
from atoll.ipc.durable import durable


class TooFar(Failure):
    step: int

    @property
    def message(self) -> str:
        return f"step {self.step} is one too many"


class Stages(Interface):
    """Each workflow has a label, by which its rows and its points are told from another's."""

    errors = (TooFar,)

    @durable("run")
    def run(self, steps: int) -> list[int]:
        """So many steps; what each gave."""

    @durable("run")
    def limited(self, label: str, steps: int, most: int) -> int:
        """Steps with an effect; a declared failure after `most`."""

    @durable("run")
    def stumble(self, label: str, failures: int) -> int:
        """One step that fails so often for a reason that passes; in which attempt it did not."""

    @durable("run")
    def fall(self, label: str) -> str:
        """A step with a bug; what the workflow was told of it."""

    @durable("run")
    def nap(self, label: str, seconds: float) -> float:
        """A timer between two steps; how long it was by the clock of the workflow."""

    @durable("run")
    def wait(self, label: str) -> str:
        """Begins, and ends when it is released."""

    @durable("run")
    def change(self, label: str) -> str:
        """Asks for another second step than before when it is run again."""

    @durable("run")
    def stray(self, label: str, what: str) -> None:
        """Does between steps what belongs into one."""

    @durable("run")
    def chance(self, label: str) -> list[float]:
        """Time and chance between steps, before and after a point."""

    @durable("run")
    def heap(self, size: int, *, in_step: bool) -> bytes:
        """So many bytes: what a step, or the workflow itself, gives."""

    @durable("run")
    def loud(self, label: str, size: int) -> str:
        """A step fails, with so many characters in its error; gives the error's kind."""

    @call("run")
    def release(self, label: str) -> None: ...

    @call("run", idempotent=True)
    def reached(self, point: str) -> None:
        """Waits until somebody stays at the point."""

    @call("run", idempotent=True)
    def counts(self) -> dict[str, int]:
        """How often the effect of each step is in the store."""
