"""Records for tests, as a rater would say them."""

from atoll.servers.feedback.interface import Feedback
from atoll.servers.feedback.records import Rating, Record
from atoll.servers.storage.interface import BlobRef


def rating(
    text: str | BlobRef,
    score: float,
    trust: float = 0.5,
    task: str = "film",
    rater: str = "r",
    prompt: str = "",
) -> Rating:
    return Rating(rater=rater, role="expert", trust=trust, task=task, text=text, score=score, prompt=prompt)


def ratings(count: int, task: str = "film", first: int = 0) -> list[Record]:
    return [
        rating(f"text {number}", (number % 3) / 2, (number % 10) / 10, task)
        for number in range(first, first + count)
    ]


def set_of(
    feedback: Feedback, task: str = "film", as_of: int | float | None = None, trust: float = 0.0
) -> list[Record]:
    return [stored.record for stored in feedback.training_set.now(task, as_of, trust)]
