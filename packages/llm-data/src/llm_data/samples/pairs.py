"""Two answers to one prompt, however a record pairs them."""

from typing import NamedTuple

from llm_data.records import Reason, RecordRefusedError
from llm_data.samples.values import Body, is_list, optional, required


class Pair(NamedTuple):
    """The better answer and the worse one, as the record has them."""

    chosen: object
    rejected: object


def pair_of(body: Body, *, chosen: str, rejected: str) -> Pair:
    """The answers of both columns; a list of texts has its best first.

    If `rejected` is the same column or empty, `chosen` is one list of both: the first two count.
    """
    better = required(body, chosen)
    worse = optional(body, rejected)
    if is_list(better) and (chosen == rejected or worse is None):
        return _first_two(better, chosen)
    if worse is None:
        required(body, rejected)
    return Pair(_first(better, chosen), _first(worse, rejected))


def _first_two(answers: list[object], column: str) -> Pair:
    if len(answers) < 2:
        raise RecordRefusedError(
            Reason.WRONG_VALUE,
            f"{column!r} is a list of {len(answers)} answers, want two: the chosen, the rejected",
        )
    return Pair(answers[0], answers[1])


def _first(value: object, column: str) -> object:
    """A list of texts is a ranking; anything else is for the format to judge."""
    if not is_list(value):
        return value
    if not value:
        raise RecordRefusedError(Reason.EMPTY, f"{column!r} is a list without answers")
    return value[0] if isinstance(value[0], str) else value
