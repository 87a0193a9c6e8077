"""What generates tokens, and what turns text into them: the two things a model must bring."""

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from llm_infer.sampling import Sampling

if TYPE_CHECKING:
    # With torch, which takes a while to import.
    from llm_infer.logits import Chosen

Message = Mapping[str, Any]
"""`role` (system, user, assistant, tool), `content`, and calls of tools as templates want it."""

Tool = Mapping[str, Any]
"""`type` and `function`, with its `name` and a JSON schema of its `parameters`."""

NO_VARIABLES: Mapping[str, object] = MappingProxyType({})

EndReason = Literal["end", "length", "context"]
"""The model's end token, `max_new_tokens`, or a full context window."""


class Engine(Protocol):
    """A loaded model."""

    @property
    def description(self) -> str:
        """Engine, device and number type, as printed once at the start."""
        ...

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together."""
        ...

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> Generator[int, None, None]:
        """Tokens as they come, without the end token; closing it ends the computation."""
        ...


@runtime_checkable
class DescribingEngine(Engine, Protocol):
    """An engine that tells the probabilities of what it chooses."""

    def choices(self, prompt: Sequence[int], sampling: Sampling) -> "Generator[Chosen, None, None]":
        """As `generate`, each token with the log-probabilities that `logprobs` asks for."""
        ...


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's natural-log probability, and the likeliest tokens' in its place."""

    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One token of one request, or (token None) the end of one without a token."""

    request: int
    token: int | None
    end: EndReason | None
    """Why the request is over with this event; None while it goes on."""
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    num_cached: int = 0
    """Tokens of the prompt that were found in a cache."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """Of the prompt's tokens but the first, with the first event of a request that reads them."""
    ended_by: tuple[int, TokenLogprob] | None = None
    """The end token of such a request."""
    score: float | None = None
    """Of a text that a beam search found, whose events come all at once."""
    failure: Exception | None = None
    """What made the request fail, whose last event this is; others are as they were."""


@runtime_checkable
class BatchEngine(Engine, Protocol):
    """An engine that computes many requests together, a step at a time. Not thread-safe.

    A request ends with an event whose `end` or `failure` is set, unless it is cancelled. The end
    token itself is not given. Stop strings are the caller's: it reads text, and cancels.
    """

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do."""
        ...

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """Queue a request and return its number.

        Raises ValueError for an empty prompt, one that leaves no room, or a token out of range.
        """
        ...

    def step(self) -> Sequence[Event]:
        """Compute once; what came of it, oldest request first. May be empty: long prompts.

        Raises only what makes the whole engine useless; what a request causes, or meets, is the
        `failure` of its event.
        """
        ...

    def cancel(self, request: int) -> None:
        """End a request at once; nothing happens when it is over already."""
        ...


@runtime_checkable
class PromptReadingEngine(BatchEngine, Protocol):
    """An engine that can tell the probabilities of a prompt's tokens."""

    def submit_read(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """As `submit`, with `Event.prompt_logprobs`; as many likely tokens as `logprobs` says."""
        ...


@runtime_checkable
class SearchingEngine(BatchEngine, Protocol):
    """An engine that has beam search."""

    def submit_search(self, prompt: Sequence[int], sampling: Sampling) -> Sequence[int]:
        """As `submit`; a number for each of `sampling.beams.num_texts` texts, best first.

        Raises InferError for a search that never has room.
        """
        ...


class Tokenizer(Protocol):
    """Text to tokens and back."""

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` works without a template of its own."""
        ...

    @property
    def vocab_size(self) -> int:
        """Tokens it knows; all are below."""
        ...

    @property
    def end_token(self) -> int | None:
        """The token that the tokenizer calls eos_token."""
        ...

    def token(self, text: str) -> int | None:
        """The token that is written so; None where there is none."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt, with whatever the model wants at its start."""
        ...

    def encode_chat(
        self,
        messages: Sequence[Message],
        template: str | None,
        *,
        tools: Sequence[Tool] | None = None,
        variables: Mapping[str, object] = NO_VARIABLES,
    ) -> list[int]:
        """Tokens of a conversation up to where the assistant's answer starts.

        `variables` are more names that the template knows, such as `enable_thinking`. Raises
        InferError where the template cannot write it, or says nothing of `tools`.
        """
        ...

    def chat_template(self, given: str | None, *, has_tools: bool) -> str:
        """The Jinja text that `encode_chat` uses; InferError where there is none."""
        ...

    def decode(self, tokens: Sequence[int], *, keeps: Collection[str] = ()) -> str:
        """Text without special tokens, but for those that `keeps` names."""
        ...
