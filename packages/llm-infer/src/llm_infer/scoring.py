"""What a score of text asks of a model, in tokens, by lm-evaluation-harness's rules; no tensors.

The rules are those of lm-eval 0.4.13: `TemplateLM.loglikelihood` and `_encode_pair`
(lm_eval/api/model.py), `get_rolling_token_windows` (lm_eval/utils.py), and
`postprocess_generated_text` (lm_eval/models/utils.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Tokens = tuple[int, ...]


class Encode(Protocol):
    """Text to tokens, with whatever the model wants at the start of a text, or without."""

    def __call__(self, text: str, *, is_start: bool = True) -> Sequence[int]:
        """Tokens of `text`; `is_start` False: it goes on after others."""
        ...


@dataclass(frozen=True, slots=True)
class Reading:
    """Tokens to read, and those that should follow: the last target after the last one read.

    There are at least one of each, and no more targets than tokens.
    """

    tokens: Tokens
    targets: Tokens

    @property
    def first(self) -> int:
        """Where the token stands after which the first target should follow."""
        return len(self.tokens) - len(self.targets)


@dataclass(frozen=True, slots=True)
class Score:
    """Of one continuation: its natural-log probability, and whether greedy decoding gives it."""

    logprob: float
    is_greedy: bool


def pair(
    context: str, continuation: str, *, encode: Encode, prefix: int, max_length: int
) -> Reading:
    """A continuation and its context, cut on the left to the last `max_length` tokens read.

    Spaces at the end of the context belong to the continuation. Without a context the token
    `prefix` is read. Raises ValueError when there is nothing to score or it exceeds `max_length`.
    """
    if context:
        kept = context.rstrip()
        continuation = context[len(kept) :] + continuation
        read = tuple(encode(kept))
        targets = tuple(encode(kept + continuation))[len(read) :]
    else:
        read, targets = (prefix,), tuple(encode(continuation, is_start=False))
        if targets[:1] == read:
            targets = targets[1:]
    if not read or not targets:
        raise ValueError(
            f"nothing to score: continuation {continuation!r} after {context[-40:]!r}; "
            "want at least one token of each"
        )
    if len(targets) > max_length:
        raise ValueError(
            f"a continuation of {len(targets)} tokens ({continuation[:40]!r}…), "
            f"but the context holds {max_length}"
        )
    return Reading((*read, *targets)[-(max_length + 1) : -1], targets)


def windows(tokens: Sequence[int], *, prefix: int, max_length: int) -> list[Reading]:
    """A text of any length in windows: each token is a target once.

    The first window reads the token `prefix`, then the text; each later one predicts the next
    `max_length` tokens, and the last reads as many before its targets as fit.
    """
    whole, found = (prefix, *tokens), list[Reading]()
    for start in range(0, len(tokens), max_length):
        stop = min(start + max_length, len(tokens))
        first = max(0, stop - max_length)
        found.append(Reading(whole[first:stop], tuple(tokens[start:stop])))
    return found


def up_to_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first of any stop string."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]
