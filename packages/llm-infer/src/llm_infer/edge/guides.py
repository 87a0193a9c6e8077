"""JSON schemas as guides, through llguidance (https://github.com/guidance-ai/llguidance)."""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from llm_infer.errors import InferError
from llm_infer.guide import NewGuide

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer


class JsonGuides(Protocol):
    """What makes guides of JSON schemas."""

    def of_schema(self, schema: Mapping[str, object]) -> NewGuide:
        """Raises InferError for a schema that cannot be followed."""
        ...


class NoJsonGuides:
    """Says why there are none."""

    def __init__(
        self, reason: str = "this engine cannot hold answers to a schema; the native engine can"
    ) -> None:
        self._reason = reason

    def of_schema(self, schema: Mapping[str, object]) -> NewGuide:  # noqa: ARG002  as JsonGuides
        """Raises InferError always."""
        raise InferError(self._reason)


class LlguidanceGuides:
    """For one tokenizer, of which a table is made at the first use."""

    def __init__(self, serialized: Callable[[], str | None], *, end_tokens: Sequence[int]) -> None:
        """`serialized` gives tokenizer.json, and None for a tokenizer that has no such form."""
        self._serialized, self._end_tokens = serialized, tuple(end_tokens)
        self._lock = threading.Lock()
        self._table: LLTokenizer | None = None

    def of_schema(self, schema: Mapping[str, object]) -> NewGuide:
        """Compiled once; each guide is a copy. Raises InferError for no valid schema."""
        from llguidance import LLMatcher

        table = self._made_table()
        try:
            grammar = LLMatcher.grammar_from_json_schema(
                json.dumps(schema),
                # With free white space a model could write line ends until its tokens run out.
                overrides={
                    "whitespace_flexible": False,
                    "item_separator": ", ",
                    "key_separator": ": ",
                },
            )
        except ValueError as error:
            raise InferError(f"the schema cannot be followed: {error}") from error
        is_error, reasons = LLMatcher.validate_grammar_with_warnings(grammar, table)
        if is_error:
            raise InferError(f"the schema cannot be followed: {reasons[0].splitlines()[0]}")
        matcher = LLMatcher(table, grammar, log_level=0)
        return lambda: _MatcherGuide(matcher.deep_copy(), self._only_end(table.vocab_size))

    def _made_table(self) -> "LLTokenizer":
        from llguidance import LLTokenizer

        if not self._end_tokens:
            raise InferError("the model has no end token, so an answer could not end")
        with self._lock:
            if self._table is None:
                text = self._serialized()
                if text is None:
                    raise InferError("no guide for this tokenizer: want one with a tokenizer.json")
                try:
                    self._table = LLTokenizer(text, eos_token=list(self._end_tokens))
                except ValueError as error:
                    raise InferError(f"no guide for this tokenizer: {error}") from error
        return self._table

    def _only_end(self, vocab_size: int) -> bytes:
        marks = bytearray(vocab_size)
        for token in self._end_tokens:
            marks[token] = 1
        return bytes(marks)


class _MatcherGuide:
    """One answer through llguidance's matcher."""

    def __init__(self, matcher: "LLMatcher", only_end: bytes) -> None:
        self._matcher, self._only_end = matcher, only_end
        self._num_seen = 0

    def allowed(self, answer: Sequence[int]) -> bytes:
        """See `Guide`. After the last token, and after an error of the matcher, only the end."""
        for token in answer[self._num_seen :]:
            self._matcher.consume_token(token)
        self._num_seen = len(answer)
        return self._only_end if self._matcher.is_stopped() else self._matcher.compute_logit_bias()


def json_guides(serialized: Callable[[], str | None], *, end_tokens: Sequence[int]) -> JsonGuides:
    """Guides for an engine that takes them, where llguidance is installed.

    `serialized` as for `LlguidanceGuides`.
    """
    if find_spec("llguidance") is None:
        return NoJsonGuides("llguidance is not installed; pip install 'llm-infer[json]'")
    return LlguidanceGuides(serialized, end_tokens=end_tokens)
