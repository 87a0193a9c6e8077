"""Prompts that wait for an answer, for reinforcement learning, with further texts as columns."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from llm_data.backends.backend import BackendSpec
from llm_data.encode import Column, EncodedBatch
from llm_data.errors import UsageError, listed
from llm_data.messages import Prompt, Sample
from llm_data.records import Batch, Reason, RecordRefusedError
from llm_data.tasks.byte_lengths import Ids
from llm_data.tasks.chat import (
    Refusals,
    Rendering,
    TaskInput,
    encoded_batch,
    expected,
    first_texts,
    too_long,
)
from llm_data.tasks.chat_tokens import ChatTokenizer
from llm_data.tasks.columns import IdColumn
from llm_data.templates import Template

_OWN = ("input_ids", "attention_mask")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSpec:
    """How to make a prompt encoder in another process. `extra` names the further columns.

    A prompt that is too long loses its beginning: its end asks for the answer.
    Notes of its batches: `truncated` samples, `loss_tokens` 0.
    """

    source: TaskInput
    rendering: Rendering
    extra: tuple[str, ...] = ()
    backend: BackendSpec = field(default_factory=BackendSpec)

    def __post_init__(self) -> None:
        wrong = [name for name in self.extra if name in _OWN or not name or "/" in name]
        if wrong or len(set(self.extra)) != len(self.extra):
            raise UsageError(
                f"further columns {listed(map(repr, self.extra))}: want distinct names without "
                f"'/', other than {listed(_OWN)}"
            )

    @property
    def columns(self) -> tuple[Column, ...]:
        """In the order of the sample dataset's table."""
        return tuple(Column(name=name, dtype=self.source.dtype) for name in (*_OWN, *self.further))

    @property
    def further(self) -> tuple[str, ...]:
        """The further columns as they are written: sorted."""
        return tuple(sorted(self.extra))

    def build(self) -> "PromptEncoder":
        """The encoder; reads the tokenizer file and compiles the template."""
        return PromptEncoder(
            self,
            read=self.source.samples.build(),
            template=self.rendering.compiled(),
            tokenizer=self.source.tokenizer(self.backend),
        )

    def first_texts(self, batches: Iterable[Batch]) -> list[str]:
        """What a run of these batches tokenizes first."""
        read = self.source.samples.build()
        template = self.rendering.compiled()
        thinking = self.rendering.thinking

        def texts_of(body: Mapping[str, object]) -> list[str]:
            found = expected(read(body), Prompt)
            rendered = template.render(
                found.conversation, thinking=thinking, add_generation_prompt=True
            )
            return [rendered.text, *found.extra.values()]

        return first_texts(batches, texts_of)


class _Row(NamedTuple):
    texts: list[Ids]
    is_truncated: bool


class PromptEncoder:
    """A tokenizer and a template with the choices of one run."""

    def __init__(
        self,
        spec: PromptSpec,
        *,
        read: Callable[[Mapping[str, object]], Sample],
        template: Template,
        tokenizer: ChatTokenizer,
    ) -> None:
        self._spec = spec
        self._read = read
        self._template = template
        self._tokenizer = tokenizer

    def __call__(self, batch: Batch, /) -> EncodedBatch:
        """The batch's prompts in order."""
        refusals = Refusals()
        texts = refusals.passed(refusals.opened(batch), self._texts)
        flat = [text for _, group in texts for text in group]
        ids = iter(self._tokenizer.ids(flat))
        tokens = [(record, [next(ids) for _ in group]) for record, group in texts]
        rows = refusals.passed(tokens, self._fitted)
        columns = [IdColumn(self._spec.source.dtype) for _ in (None, *self._spec.further)]
        for _, row in rows:
            for column, ids in zip(columns, row.texts, strict=True):
                column.append(ids)
        first, *further = columns
        return encoded_batch(
            batch,
            (first.encoded(), first.ones(), *(column.encoded() for column in further)),
            rows=len(rows),
            num_tokens=first.num_tokens,
            refusals=refusals,
            notes={"truncated": sum(row.is_truncated for _, row in rows), "loss_tokens": 0},
        )

    def _texts(self, body: Mapping[str, object]) -> list[str]:
        """The prompt, then the further columns."""
        prompt = expected(self._read(body), Prompt)
        missing = [name for name in self._spec.further if name not in prompt.extra]
        if missing:
            raise RecordRefusedError(
                Reason.MISSING_KEY,
                f"no {listed(map(repr, missing))} for the columns asked for; "
                f"the record gives {listed(prompt.extra)}",
            )
        rendered = self._template.render(
            prompt.conversation,
            thinking=self._spec.rendering.thinking,
            add_generation_prompt=True,
        )
        return [rendered.text, *(prompt.extra[name] for name in self._spec.further)]

    def _fitted(self, texts: list[Ids]) -> _Row:
        limit = self._spec.source.limit
        prompt, *further = texts
        if not len(prompt):
            raise RecordRefusedError(Reason.EMPTY, "the tokenizer gives no tokens for the prompt")
        is_truncated = too_long(len(prompt), limit)
        if is_truncated and limit.seq_length is not None:
            prompt = prompt[-limit.seq_length :]
        return _Row([prompt, *further], is_truncated)
