"""A model on a server: its answers as streams of text."""

import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from difflib import get_close_matches

from llm_infer.edge.answers import Answer, progress
from llm_infer.edge.remote.server import Server
from llm_infer.engine import Message
from llm_infer.errors import InferError
from llm_infer.openai_api.answers import TokenText
from llm_infer.openai_api.outgoing import (
    chat_body,
    completion_body,
    finish_reason,
    model_names,
    parse_event,
)
from llm_infer.prompts import Prompt
from llm_infer.sampling import Sampling
from llm_infer.stream import FinishReason
from llm_infer.thinking import Thought, ThoughtReading

_AT_ONCE = 16


class RemoteStream:
    """Iterate for pieces of text; afterwards the counts and `finish_reason` are final.

    Tokens are counted as the server says; one that says nothing has its pieces counted.
    """

    def __init__(self, server: Server, path: str, body: bytes, sampling: Sampling) -> None:
        self.text = ""
        self._logprobs: list[TokenText] = []
        self.num_tokens = 0
        self.num_prompt_tokens: int | None = None
        self.finish_reason: FinishReason | None = None
        self.first_token_s: float | None = None
        self._server, self._path, self._body, self._sampling = server, path, body, sampling
        self._last_token_s = self._start_s = time.perf_counter()

    @property
    def tokens_per_s(self) -> float | None:
        """Rate after the first token, whose time is mostly the prompt's."""
        if self.first_token_s is None or self.num_tokens < 2:
            return None
        elapsed = self._last_token_s - self._start_s - self.first_token_s
        return (self.num_tokens - 1) / elapsed if elapsed > 0 else None

    def __iter__(self) -> Iterator[str]:
        with closing(self.parts()) as parts:
            yield from (part for part in parts if isinstance(part, str))

    def parts(self) -> Generator[str | Thought, None, None]:
        """Text, and thoughts that the server tells apart."""
        self._start_s = time.perf_counter()
        # Closing it closes the connection, which ends the computation.
        with closing(self._server.stream(self._path, self._body)) as events:
            for data in events:
                yield from self._piece(data)

    def finished(self) -> Answer:
        """All of it."""
        text = "".join(self)
        if self._sampling.logprobs is not None and text and not self._logprobs:
            raise InferError(f"{self._server.name}: logprobs: this server tells none")
        return Answer(
            text=text,
            logprobs=tuple(self._logprobs),
            num_tokens=self.num_tokens,
            finish_reason=self.finish_reason,
            num_prompt_tokens=self.num_prompt_tokens,
            first_token_s=self.first_token_s,
            tokens_per_s=self.tokens_per_s,
        )

    def _piece(self, data: str) -> Iterator[str | Thought]:
        num_top = self._sampling.logprobs or 0
        delta = parse_event(data, where=self._server.name, num_top=num_top)
        self._logprobs += delta.tokens
        if delta.text or delta.thought:
            self.num_tokens += 1
            self.text += delta.text
            self._last_token_s = time.perf_counter()
            if self.first_token_s is None:
                self.first_token_s = self._last_token_s - self._start_s
        if delta.thought:
            yield Thought(delta.thought)
        if delta.text:
            yield delta.text
        if delta.finish is not None:
            self.finish_reason = finish_reason(delta.finish, self._sampling)
        if delta.num_tokens is not None:
            self.num_tokens = delta.num_tokens
            self.num_prompt_tokens = delta.num_prompt_tokens


class RemoteModel:
    """One of the models of a server."""

    def __init__(self, server: Server, name: str) -> None:
        """Raises InferError when the server does not have it."""
        names = model_names(server.get("/models"))
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names) or 'none'}"
            raise InferError(f"{server.name}: no model {name}: {hint}")
        self._server, self._name = server, name

    @property
    def description(self) -> str:
        """As printed once at the start."""
        return f"openai: {self._name} at {self._server.name}"

    def require_chat(self, messages: Sequence[Message]) -> None:
        """The server has the template, and says so when it cannot use it."""

    def thought_reading(self, messages: Sequence[Message]) -> ThoughtReading:  # noqa: ARG002
        """Of a thought that the server leaves in the text; one that only ends stays there."""
        return ThoughtReading()

    def call_reading(self, messages: Sequence[Message]) -> None:
        """No tools are told of."""

    def complete(self, prompt: str | Sequence[int], sampling: Sampling) -> RemoteStream:
        """What follows a text, or tokens."""
        body = completion_body(self._name, prompt, sampling)
        return RemoteStream(self._server, "/completions", body, sampling)

    def converse(self, messages: Sequence[Message], sampling: Sampling) -> RemoteStream:
        """The answer in a conversation, written with the server's chat template."""
        body = chat_body(self._name, messages, sampling)
        return RemoteStream(self._server, "/chat/completions", body, sampling)

    def complete_all(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Answer]:
        """A few at once; the server batches them."""

        def answer(number: int) -> Answer:
            prompt = prompts[number]
            drawn = replace(sampling, seed=sampling.seed + number)
            try:
                found = self.complete(prompt.text, drawn).finished()
            except InferError as error:
                raise InferError(f"{prompt.where}: {error}") from error
            advance()
            return found

        with progress("prompts", len(prompts)) as advance, ThreadPoolExecutor(_AT_ONCE) as pool:
            running = [pool.submit(answer, number) for number in range(len(prompts))]
            try:
                return [one.result() for one in running]
            finally:
                # After an error nobody wants the others.
                pool.shutdown(wait=False, cancel_futures=True)
