"""Two runs of one model, point by point: where they part, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

HEADINGS = ("point", "forward", "alone", "gradient", "worst weight gradient")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """The weight whose gradient differs most, and by how much."""

    name: str
    difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One place in the model: the embeddings, a layer's output, the final norm or the logits.

    Differences are the largest absolute one over the largest absolute value that was wanted.
    `forward` includes what earlier layers did; `alone` is this layer's with the input it should
    have had; `gradient` is that of the loss by the values at this place; `weight` is the worst of
    the weights that lead to it. None where it was not compared.
    """

    name: str
    forward: float
    alone: float | None = None
    gradient: float | None = None
    weight: Weight | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All points in the order of the forward pass, and the loss of either side."""

    points: tuple[Point, ...]
    loss: float
    wanted_loss: float
    tolerance: float

    @property
    def first_forward(self) -> Point | None:
        """Where the forward passes part first."""
        return next((one for one in self.points if self._is_apart(one.forward)), None)

    @property
    def first_gradient(self) -> Point | None:
        """Where the backward passes, which begin at the logits, part first."""
        return next((one for one in reversed(self.points) if self._is_apart(one.gradient)), None)

    @property
    def first_weight(self) -> Point | None:
        """The last point, as backward goes, one of whose weights has another gradient."""
        return next(
            (
                one
                for one in reversed(self.points)
                if one.weight is not None and self._is_apart(one.weight.difference)
            ),
            None,
        )

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs by more than the tolerance."""
        return not (self.first_forward or self.first_gradient or self.first_weight)

    def _is_apart(self, difference: float | None) -> bool:
        # Not a number is apart too.
        return difference is not None and not difference <= self.tolerance


def verdict(found: Comparison) -> str:
    """Say in a line or two where the runs part first."""
    lines: list[str] = []
    if point := found.first_forward:
        alone = "" if point.alone is None else f" ({point.alone:.1e} of it by itself)"
        lines.append(f"forward parts first at {point.name}: {point.forward:.1e}{alone}")
    if point := found.first_gradient:
        lines.append(f"backward parts first at {point.name}: {point.gradient:.1e}")
    if (point := found.first_weight) and point.weight is not None:
        weight = point.weight
        lines.append(f"a weight's gradient parts first at {weight.name}: {weight.difference:.1e}")
    if not lines:
        return f"equal: nothing differs by more than {found.tolerance:.0e}"
    return "\n".join([*lines, f"(more than {found.tolerance:.0e} of the largest value)"])


def table(found: Comparison) -> list[str]:
    """A line a point, a column a comparison."""
    rows = [HEADINGS, *(_cells(point) for point in found.points)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS) - 1)]
    return [
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]
        ).rstrip()
        for row in rows
    ]


def document(found: Comparison) -> dict[str, object]:
    """The comparison as JSON holds it."""
    first = {
        "forward": found.first_forward,
        "gradient": found.first_gradient,
        "weight": found.first_weight,
    }
    return {
        "equal": found.is_equal,
        "first": {kind: None if one is None else one.name for kind, one in first.items()},
        **asdict(found),
    }


def _cells(point: Point) -> Sequence[str]:
    weight = point.weight
    return (
        point.name,
        _number(point.forward),
        _number(point.alone),
        _number(point.gradient),
        "" if weight is None else f"{_number(weight.difference)} {weight.name}",
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"
