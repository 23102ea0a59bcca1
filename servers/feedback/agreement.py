"""How far raters agree on what several of them judged.

Ratings: Krippendorff's alpha with the interval metric, over the items that at least two raters rated; a
rater who rated an item more than once counts once, with the mean. Sums of values and squares per item are
enough, so memory follows the number of items. Preferences: of all pairs of raters who compared the same
two answers to the same prompt, the share that prefer the same one.
"""

from collections import defaultdict
from collections.abc import Iterable

from .interface import Agreement
from .records import Preference, Rating, Record, Text, is_purged


def _mean_by_rater(marks: list[tuple[str, float]]) -> list[float]:
    by_rater: defaultdict[str, list[float]] = defaultdict(list)
    for rater, mark in marks:
        by_rater[rater].append(mark)
    return [sum(each) / len(each) for each in by_rater.values()]


def alpha(units: Iterable[list[float]]) -> float | None:
    """Krippendorff's alpha (interval) of units with at least two values each; None if nothing varies.

    1 - observed / expected disagreement, where the sum of squared differences of all ordered pairs out of
    m values is 2 (m sum(x^2) - sum(x)^2).
    """
    count = 0
    total = squares = observed = 0.0
    for values in units:
        own = sum(values)
        own_squares = sum(value * value for value in values)
        observed += 2 * (len(values) * own_squares - own * own) / (len(values) - 1)
        count += len(values)
        total += own
        squares += own_squares
    if count < 2:
        return None
    expected = 2 * (count * squares - total * total) / (count - 1)
    return None if expected <= 1e-12 * max(1.0, squares) else 1.0 - observed / expected


class Judgements:
    """What raters said of one task, gathered record by record."""

    def __init__(self, task: str) -> None:
        self._task = task
        self._marks: defaultdict[tuple[Text, Text], list[tuple[str, float]]] = defaultdict(list)
        self._choices: defaultdict[tuple[Text, frozenset[Text]], list[tuple[str, float]]] = defaultdict(list)

    def add(self, record: Record) -> None:
        """Corrections say nothing that could be compared, and of what was purged nobody knows whether it is the same."""
        if is_purged(record):
            return
        if isinstance(record, Rating):
            self._marks[record.prompt, record.text].append((record.rater, record.score))
        elif isinstance(record, Preference):
            answers = (record.chosen, record.rejected)
            first = min(answers, key=repr)
            self._choices[record.prompt, frozenset(answers)].append(
                (record.rater, float(record.chosen == first))
            )

    def result(self) -> Agreement:
        units = [values for each in self._marks.values() if len(values := _mean_by_rater(each)) > 1]
        same = pairs = compared = 0
        for each in self._choices.values():
            sides = [round(value) for value in _mean_by_rater(each)]
            if len(sides) > 1:
                compared += 1
                ones = sum(sides)
                zeros = len(sides) - ones
                same += (ones * (ones - 1) + zeros * (zeros - 1)) // 2
                pairs += len(sides) * (len(sides) - 1) // 2
        return Agreement(
            task=self._task,
            items=len(units),
            ratings=sum(map(len, units)),
            alpha=alpha(units),
            compared=compared,
            same_order=same / pairs if pairs else None,
        )
