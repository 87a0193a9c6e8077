"""How the next token is chosen, and when to stop."""

from dataclasses import dataclass
from typing import Literal

EarlyStopping = Literal["false", "true", "never"]
"""When a beam search ends; the names are transformers'.

false: once no running text looks better than the worst of the ended ones as long as it is now;
true: as soon as as many have ended as there are beams; never: once none can become better at all.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beams:
    """Settings of a beam search; raises ValueError for a number out of range."""

    num_beams: int
    length_penalty: float = 1.0
    """A text's score is its log-probability over its length to this power."""
    early_stopping: EarlyStopping = "false"
    num_texts: int = 1
    """How many of the texts that were found are wanted, the best ones."""

    def __post_init__(self) -> None:
        _require(self.num_beams >= 2, "num_beams", self.num_beams, "at least 2")
        penalty = self.length_penalty
        _require(-5.0 <= penalty <= 5.0, "length_penalty", penalty, "in [-5, 5]")
        wanted = f"1 to num_beams({self.num_beams})"
        _require(1 <= self.num_texts <= self.num_beams, "num_texts", self.num_texts, wanted)


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
    min_p: float = 0.0
    """Draw among tokens at least this fraction as likely as the likeliest; 0 is off."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens seen in prompt or answer, multiplies negative ones."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens of the answer so far."""
    frequency_penalty: float = 0.0
    """The same, times how often the token occurs there."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, number to add to its logit)."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Text at which to end; it is not part of the answer."""
    logprobs: int | None = None
    """Log-probabilities of the chosen token and of so many likeliest; None for none at all."""
    ignores_end: bool = False
    """Whether the model's end token is a token like any other."""
    end_tokens: tuple[int, ...] = ()
    """Tokens that end an answer beside the model's own."""
    beams: Beams | None = None
    """Search for the likeliest text with so many beams; None takes one token after the other."""

    def __post_init__(self) -> None:
        _require(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "at least 1")
        _require(0.0 <= self.temperature < float("inf"), "temperature", self.temperature, ">= 0")
        _require(self.top_k >= 0, "top_k", self.top_k, "at least 0 (0 is off)")
        _require(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "in (0, 1]")
        _require(0.0 <= self.min_p <= 1.0, "min_p", self.min_p, "in [0, 1]")
        penalty = self.repetition_penalty
        wanted = "in [0.01, 100] (1 is off)"
        _require(0.01 <= penalty <= 100.0, "repetition_penalty", penalty, wanted)
        for name in ("presence_penalty", "frequency_penalty"):
            value = float(getattr(self, name))
            _require(-2.0 <= value <= 2.0, name, value, "in [-2, 2]")
        for token, bias in self.logit_bias:
            is_met = token >= 0 and -100.0 <= bias <= 100.0
            _require(
                is_met, "logit_bias", f"{token}: {bias}", "a token and a number in [-100, 100]"
            )
        _require(0 <= self.seed < 1 << 63, "seed", self.seed, "in [0, 2**63)")
        _require(all(self.stop), "stop", self.stop, "strings of at least one character")
        shown = self.logprobs
        _require(shown is None or 0 <= shown <= 20, "logprobs", shown, "in [0, 20]")
        is_warm = self.temperature == 0.0 or self.temperature >= 0.001
        wanted = "0 or at least 0.001 with beams"
        _require(self.beams is None or is_warm, "temperature", self.temperature, wanted)

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn at random."""
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        """Whether the text so far or a bias changes the logits."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty - 1.0)
        return any(penalties) or bool(self.logit_bias)


def _require(is_met: bool, name: str, found: object, wanted: str) -> None:
    if not is_met:
        raise ValueError(f"{name}: found {found}, want {wanted}")
