"""What is made of the times: ratios, shares of copy bandwidth, tables. Needs no device."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

GOAL_RATIO, GOAL_MEAN, GOAL_SHARE, GOAL_MEMORY = 1.0, 1.1, 0.8, 0.25


@dataclass(frozen=True)
class Row:
    """Median microseconds of forward with backward, and the bytes that must be moved for it."""

    operator: str
    size: str
    ours_us: float
    peer_us: float
    moved_bytes: int | None

    @property
    def ratio(self) -> float:
        """How many times the peer's speed ours is."""
        return self.peer_us / self.ours_us

    def share(self, copy_bytes_per_s: float) -> float | None:
        """Ours as a part of the bandwidth of a copy; None where arithmetic is the bound."""
        if self.moved_bytes is None:
            return None
        return self.moved_bytes / (self.ours_us * 1e-6) / copy_bytes_per_s


@dataclass(frozen=True)
class Peak:
    """The linear cross entropy one way: its time, and its peak memory over what it was given."""

    name: str
    microseconds: float
    peak_bytes: int


def geometric_mean(ratios: Sequence[float]) -> float:
    """The mean of ratios: 2 and 1/2 give 1."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def speed_table(rows: Sequence[Row], copy_bytes_per_s: float) -> str:
    """A line a measurement, then the geometric mean and what missed its goal."""
    lines = [
        "| operator | size | ours µs | liger µs | ratio | of copy bandwidth |",
        "|---|---|---|---|---|---|",
    ]
    missed: list[str] = []
    for row in rows:
        share = row.share(copy_bytes_per_s)
        shown = "" if share is None else f"{share:.0%}"
        cells = (row.operator, row.size, f"{row.ours_us:,.0f}", f"{row.peer_us:,.0f}")
        lines.append(f"| {' | '.join(cells)} | {row.ratio:.2f} | {shown} |")
        if row.ratio < GOAL_RATIO:
            missed.append(f"{row.operator} {row.size}: {row.ratio:.2f}x, want {GOAL_RATIO}x")
        if share is not None and share < GOAL_SHARE:
            missed.append(f"{row.operator} {row.size}: {shown} of copy, want {GOAL_SHARE:.0%}")
    mean = geometric_mean([row.ratio for row in rows])
    verdict = "met" if mean >= GOAL_MEAN else "missed"
    lines += ["", f"geometric mean {mean:.2f}x, goal {GOAL_MEAN}x: {verdict}"]
    return "\n".join([*lines, *(f"missed: {line}" for line in missed)])


def memory_table(plain: Peak, others: Sequence[Peak]) -> str:
    """Each way beside the plain one, which is first."""
    lines = ["| linear cross entropy | µs | speed | peak MiB | of plain |", "|---|---|---|---|---|"]
    for peak in (plain, *others):
        speed, part = plain.microseconds / peak.microseconds, peak.peak_bytes / plain.peak_bytes
        cells = (peak.name, f"{peak.microseconds:,.0f}", f"{speed:.2f}x")
        lines.append(f"| {' | '.join(cells)} | {peak.peak_bytes / 2**20:,.0f} | {part:.0%} |")
    goal = f"goal for ours: {GOAL_RATIO}x the plain one's speed at {GOAL_MEMORY:.0%} of its memory"
    return "\n".join([*lines, "", goal])
