"""A model in this process as a `Speaker`."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from llm_infer.detokenize import Decode
from llm_infer.edge.answers import Answer, answers_of
from llm_infer.edge.model_folder import Loaded
from llm_infer.edge.templates import ended_by
from llm_infer.engine import NO_VARIABLES, Message, Tool
from llm_infer.errors import InferError
from llm_infer.prompts import Prompt
from llm_infer.sampling import Sampling
from llm_infer.stream import TextStream
from llm_infer.thinking import LAST_TOKENS, THINK, Marks, ThoughtReading, marks_of, reading_after
from llm_infer.tools.formats import format_of
from llm_infer.tools.splitter import CallReading, signatures


class LocalSpeaker:
    """Encodes, checks the room, and lets the engine generate."""

    def __init__(
        self,
        loaded: Loaded,
        *,
        template: str | None,
        ends: Sequence[str] = (),
        tools: Sequence[Tool] | None = None,
        variables: Mapping[str, object] = NO_VARIABLES,
    ) -> None:
        """`template` is Jinja text in place of the tokenizer's; `variables` it knows by name.

        `ends` end answers in conversations, as texts of tokens, beside what the model brings.
        """
        self._loaded, self._template, self._ends = loaded, template, ends
        self._tools, self._variables = tools, variables
        self._calls, self._marks = self._found_reading(), self._found_marks()

    def require_chat(self, messages: Sequence[Message]) -> None:
        """Raise when there is no template, or one that cannot write this."""
        if self._template is None and not self._loaded.tokenizer.has_chat_template:
            raise InferError(
                "the tokenizer has no chat template; give one with --template NAME|FILE"
            )
        self._written(messages)

    def thought_reading(self, messages: Sequence[Message]) -> ThoughtReading:
        """By the template's marks, which may open the thought at the end of the prompt."""
        end = self._written(messages)[-LAST_TOKENS:]
        text = self._loaded.tokenizer.decode(end, keeps=self._marks.both)
        return reading_after(text, self._marks)

    def call_reading(self, messages: Sequence[Message]) -> CallReading | None:
        """In the format that the template asks for."""
        if self._calls is None or not self._calls.form.has_channels:
            return self._calls
        end = self._written(messages)[-LAST_TOKENS:]
        marks = self._calls.form.marks
        return replace(self._calls, prompt_end=self._loaded.tokenizer.decode(end, keeps=marks))

    def complete(self, prompt: str, sampling: Sampling) -> TextStream:
        """What follows a text."""
        prompted = self._loaded.tokenizer.encode(prompt)
        return self._start(prompted, sampling, self._loaded.tokenizer.decode)

    def converse(self, messages: Sequence[Message], sampling: Sampling) -> TextStream:
        """The next answer in a conversation."""
        marks = self._marks.both if self._calls is None else self._calls.form.marks
        if self._calls is not None and not self._calls.form.has_channels:
            marks = (*marks, *self._marks.both)
        decode = partial(self._loaded.tokenizer.decode, keeps=marks)
        ended = ended_by(sampling, self._ends, self._loaded.tokenizer)
        return self._start(self._written(messages), ended, decode)

    def complete_all(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Answer]:
        """All together where the engine can; a prompt without room fails before anything runs."""
        self._check_bias(sampling)
        encoded = [self._encoded(prompt) for prompt in prompts]
        answers = answers_of(self._loaded, encoded, sampling)
        return [
            replace(
                answer,
                num_prompt_tokens=len(tokens),
                others=tuple(replace(one, num_prompt_tokens=len(tokens)) for one in answer.others),
            )
            for answer, tokens in zip(answers, encoded, strict=True)
        ]

    def _written(self, messages: Sequence[Message]) -> list[int]:
        return self._loaded.tokenizer.encode_chat(
            messages, self._template, tools=self._tools, variables=self._variables
        )

    def _encoded(self, prompt: Prompt) -> list[int]:
        tokens = self._loaded.tokenizer.encode(prompt.text)
        try:
            self._check_room(tokens)
        except InferError as error:
            raise InferError(f"{prompt.where}: {error}") from error
        return tokens

    def _found_marks(self) -> Marks:
        if not (self._template or self._loaded.tokenizer.has_chat_template):
            return THINK
        has_tools = self._tools is not None
        return marks_of(self._loaded.tokenizer.chat_template(self._template, has_tools=has_tools))

    def _found_reading(self) -> CallReading | None:
        if not (self._template or self._loaded.tokenizer.has_chat_template):
            return None
        has_tools = self._tools is not None
        form = format_of(self._loaded.tokenizer.chat_template(self._template, has_tools=has_tools))
        if form is None or not (has_tools or form.has_channels):
            return None
        return CallReading(form=form, tools=signatures(self._tools or ()))

    def _start(self, prompt: Sequence[int], sampling: Sampling, decode: Decode) -> TextStream:
        self._check_room(prompt)
        self._check_bias(sampling)
        return TextStream(
            self._loaded.engine.generate(prompt, sampling),
            decode,
            sampling,
            room=self._loaded.engine.context_length - len(prompt),
            clock=time.perf_counter,
            num_prompt_tokens=len(prompt),
        )

    def _check_bias(self, sampling: Sampling) -> None:
        size = self._loaded.tokenizer.vocab_size
        if strays := [token for token, _ in sampling.logit_bias if token >= size]:
            raise InferError(f"logit_bias: found token {strays[0]}, want 0 to {size - 1}")

    def _check_room(self, prompt: Sequence[int]) -> None:
        """Raise unless there is a prompt, and room behind it in the context."""
        context = self._loaded.engine.context_length
        if not prompt:
            raise InferError("the prompt is empty and the tokenizer adds nothing to it")
        if len(prompt) >= context:
            raise InferError(
                f"the prompt has {len(prompt)} tokens; the model's context of {context} "
                "leaves no room for an answer"
            )
