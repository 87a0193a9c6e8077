"""How the next token is chosen, and when to stop."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Settings of one generation; raises ValueError for a number out of range."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    """0 takes the likeliest token; else logits are divided by it and a token is drawn."""
    top_k: int = 0
    """Draw among the k likeliest; 0 is off."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together reach this probability; 1 is off."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Text at which to end; it is not part of the answer."""

    def __post_init__(self) -> None:
        _require(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "at least 1")
        _require(0.0 <= self.temperature < float("inf"), "temperature", self.temperature, ">= 0")
        _require(self.top_k >= 0, "top_k", self.top_k, "at least 0 (0 is off)")
        _require(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "in (0, 1]")
        _require(0 <= self.seed < 1 << 63, "seed", self.seed, "in [0, 2**63)")
        _require(all(self.stop), "stop", self.stop, "strings of at least one character")

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn at random."""
        return self.temperature == 0.0


def _require(is_met: bool, name: str, found: object, wanted: str) -> None:
    if not is_met:
        raise ValueError(f"{name}: found {found}, want {wanted}")
