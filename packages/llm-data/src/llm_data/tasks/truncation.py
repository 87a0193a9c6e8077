"""How a conversation that is too long is shortened, turn by turn."""

from enum import StrEnum
from typing import NamedTuple

import numpy as np

from llm_data.tasks.chat_tokens import ChatTokens, TokenSpan


class TooLong(StrEnum):
    """What becomes of a sample that has more tokens than a row may."""

    DROP = "drop"
    TRUNCATE = "truncate"


class Kept(NamedTuple):
    """How many tokens of a prompt and of its answer stay, from the front of each."""

    prompt: int
    answer: int


def fit(prompt: int, answer: int, *, capacity: int) -> Kept:
    """LLaMA-Factory's rule: an answer shorter than half the room stays whole, else a prompt that
    short does, else both shrink in proportion. Lengths that fit together stay as they are.
    """
    if prompt + answer <= capacity:
        return Kept(prompt, answer)
    if answer * 2 < capacity:
        most = capacity
    elif prompt * 2 < capacity:
        most = capacity - prompt
    else:
        most = capacity * answer // (prompt + answer)
    kept = min(answer, most)
    return Kept(min(prompt, capacity - kept), kept)


def truncate_turns(tokens: ChatTokens, capacity: int, *, newest_first: bool) -> ChatTokens:
    """The conversation in at most `capacity` tokens; a shortened answer has no end token.

    A turn is an answer with all that comes before it since the last one. Turns take what room they
    need in their order, or from the newest back; those that find none are left out. Text after the
    last answer goes first.
    """
    kept: list[tuple[int, TokenSpan, Kept]] = []
    room = capacity
    begins = [0, *(span.end for span in tokens.spans)]
    turns = list(zip(begins, tokens.spans, strict=False))
    for begin, span in reversed(turns) if newest_first else turns:
        if room <= 0:
            break
        share = fit(span.start - begin, span.end - span.start, capacity=room)
        room -= sum(share)
        kept.append((begin, span, share))
    if newest_first:
        kept.reverse()
    parts = [tokens.ids[:0]]
    spans: list[TokenSpan] = []
    size = 0
    for begin, span, share in kept:
        parts.append(tokens.ids[begin : begin + share.prompt])
        parts.append(tokens.ids[span.start : span.start + share.answer])
        start = size + share.prompt
        size = start + share.answer
        spans.append(TokenSpan(start, size, span.message))
    return ChatTokens(np.concatenate(parts), tuple(spans))
