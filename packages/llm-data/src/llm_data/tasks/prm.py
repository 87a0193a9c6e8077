"""Process rewards: a solution's ids, with a reward token as the label of each step's end."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from llm_data.backends.backend import BackendSpec
from llm_data.encode import Column, EncodedBatch
from llm_data.errors import UsageError, listed
from llm_data.messages import Sample, StepRewards
from llm_data.records import Batch, Reason, RecordRefusedError
from llm_data.tasks.byte_lengths import Ids
from llm_data.tasks.chat import (
    Refusals,
    TaskInput,
    encoded_batch,
    expected,
    first_texts,
    nothing_left,
    too_long,
)
from llm_data.tasks.chat_tokens import ChatTokenizer
from llm_data.tasks.columns import IdColumn, LabelColumn, labels_column

# What may stand before a placeholder; a tokenizer may have a token of its own for each.
_BEFORE = ("", " ", "\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrmSpec:
    """How to make a process-reward encoder in another process.

    `placeholder` ends every step; `reward_tokens` are the rewards allowed, none for any that is one
    token. Both are looked up without special tokens, as in MindSpeed-LLM. Notes of its batches:
    `truncated` samples, `loss_tokens` rewards.
    """

    source: TaskInput
    placeholder: str
    reward_tokens: tuple[str, ...] = ()
    backend: BackendSpec = field(default_factory=BackendSpec)

    @property
    def columns(self) -> tuple[Column, ...]:
        """In the order of the sample dataset's table."""
        dtype = self.source.dtype
        return (
            Column(name="input_ids", dtype=dtype),
            labels_column("labels"),
            Column(name="attention_mask", dtype=dtype),
        )

    def build(self) -> "PrmEncoder":
        """The encoder; UsageError if the placeholder or a reward is not one token."""
        tokenizer = self.source.tokenizer(self.backend)
        reference = tokenizer.reference
        wrong = [
            f"{text!r} is the tokens {_shown(reference, text)}"
            for text in (self.placeholder, *self.reward_tokens)
            if _token_of(reference, text) is None
        ]
        if wrong:
            raise UsageError(
                f"{self.source.tokenizer_file}: a placeholder and a reward must be one token, but "
                f"{'; '.join(wrong)}. --placeholder-token and --reward-tokens name others"
            )
        return PrmEncoder(self, read=self.source.samples.build(), tokenizer=tokenizer)

    def first_texts(self, batches: Iterable[Batch]) -> list[str]:
        """What a run of these batches tokenizes first."""
        read = self.source.samples.build()
        return first_texts(batches, lambda body: [expected(read(body), StepRewards).text])


class _Row(NamedTuple):
    ids: Ids
    labels: Ids
    learned: list[tuple[int, int]]
    is_truncated: bool


class PrmEncoder:
    """A tokenizer with the choices of one run."""

    def __init__(
        self,
        spec: PrmSpec,
        *,
        read: Callable[[Mapping[str, object]], Sample],
        tokenizer: ChatTokenizer,
    ) -> None:
        self._spec = spec
        self._read = read
        self._tokenizer = tokenizer
        self._placeholders = _placeholder_ids(tokenizer.reference, spec.placeholder)
        self._rewards: dict[str, int] = {}

    def __call__(self, batch: Batch, /) -> EncodedBatch:
        """The batch's solutions in order."""
        refusals = Refusals()
        samples = refusals.passed(refusals.opened(batch), self._sample)
        texts = [sample.text for _, sample in samples]
        joined = [
            (record, (sample, ids))
            for (record, sample), ids in zip(samples, self._tokenizer.ids(texts), strict=True)
        ]
        rows = refusals.passed(joined, self._label)
        ids, labels = IdColumn(self._spec.source.dtype), LabelColumn()
        for _, row in rows:
            ids.append(row.ids)
            labels.append(row.labels, row.learned)
        return encoded_batch(
            batch,
            (ids.encoded(), labels.encoded(), ids.ones()),
            rows=len(rows),
            num_tokens=ids.num_tokens,
            refusals=refusals,
            notes={
                "truncated": sum(row.is_truncated for _, row in rows),
                "loss_tokens": labels.num_learned,
            },
        )

    def _sample(self, body: Mapping[str, object]) -> StepRewards:
        return expected(self._read(body), StepRewards)

    def _label(self, found: tuple[StepRewards, Ids]) -> _Row:
        sample, ids = found
        rewards = [self._reward_of(text) for text in sample.rewards]
        places: list[int] = np.flatnonzero(np.isin(ids, self._placeholders)).tolist()
        if len(places) != len(rewards):
            raise RecordRefusedError(
                Reason.WRONG_VALUE,
                f"{len(places)} tokens are the placeholder {self._spec.placeholder!r}, "
                f"want {len(rewards)}, one a reward",
            )
        if places and places[0] == 0:
            raise RecordRefusedError(
                Reason.WRONG_VALUE,
                f"the text begins with the placeholder {self._spec.placeholder!r}, "
                "want a step before it",
            )
        if not places:
            raise RecordRefusedError(Reason.NO_TARGET, "no rewards")
        limit = self._spec.source.limit
        is_truncated = too_long(len(ids), limit)
        if is_truncated and limit.seq_length is not None:
            ids = ids[: limit.seq_length]
            places = [place for place in places if place < limit.seq_length]
            if not places:
                raise nothing_left(limit.seq_length)
        labels = ids.copy()
        for place, reward in zip(places, rewards, strict=False):
            labels[place] = reward
        return _Row(ids, labels, [(place, place + 1) for place in places], is_truncated)

    def _reward_of(self, text: str) -> int:
        known = self._rewards.get(text)
        if known is not None:
            return known
        allowed = self._spec.reward_tokens
        if allowed and text not in allowed:
            raise RecordRefusedError(
                Reason.WRONG_VALUE, f"reward {text!r}, want one of {listed(map(repr, allowed))}"
            )
        reference = self._tokenizer.reference
        token = _token_of(reference, text)
        if token is None:
            raise RecordRefusedError(
                Reason.WRONG_VALUE,
                f"reward {text!r} is the tokens {_shown(reference, text)}, want one",
            )
        self._rewards[text] = token
        return token


def _token_of(tokenizer: Tokenizer, text: str) -> int | None:
    """The one token that a text is; an unknown token is not the text."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    found = tokenizer.decode(ids, skip_special_tokens=False)
    return ids[0] if len(ids) == 1 and found.strip() == text.strip() else None


def _shown(tokenizer: Tokenizer, text: str) -> str:
    return listed(map(repr, tokenizer.encode(text, add_special_tokens=False).tokens))


def _placeholder_ids(tokenizer: Tokenizer, placeholder: str) -> list[int]:
    """The ids of the placeholder: alone, and where a space or a line break is joined to it."""
    wanted = placeholder.strip()
    found: set[int] = set()
    for before in _BEFORE:
        text = before + placeholder
        encoding = tokenizer.encode(text, add_special_tokens=False)
        start, end = encoding.offsets[-1]
        if text[start:end].strip() == wanted:
            found.add(encoding.ids[-1])
    return sorted(found)
