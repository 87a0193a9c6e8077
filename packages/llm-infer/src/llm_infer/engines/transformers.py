"""The transformers engine: `generate` with its key-value cache, read token by token."""

from collections.abc import Generator, Sequence
from contextlib import closing
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from llm_infer.errors import InferError
from llm_infer.logits import Chosen, described, penalized, require_numbers
from llm_infer.sampling import Sampling

_Item = Chosen | BaseException | None


class TransformersEngine:
    """A transformers model as a `DescribingEngine`."""

    def __init__(self, model: PreTrainedModel, *, end_tokens: Sequence[int]) -> None:
        self._model = model
        self._end_tokens = tuple(end_tokens)
        # The folder's own sampling defaults would fill in whatever we leave unset.
        model.generation_config = GenerationConfig()

    @property
    def description(self) -> str:
        """Engine, device and number type."""
        dtype = str(self._model.dtype).removeprefix("torch.")
        return f"transformers on {self._model.device}, {dtype}"

    @property
    def context_length(self) -> int:
        """The positions the model was made for."""
        return int(self._model.config.get_text_config().max_position_embeddings)

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> Generator[int, None, None]:
        """Tokens as they come, without the end token; closing it ends the computation."""
        with closing(self.choices(prompt, sampling)) as choices:
            yield from (chosen.token for chosen in choices)

    def choices(self, prompt: Sequence[int], sampling: Sampling) -> Generator[Chosen, None, None]:
        """See `DescribingEngine`."""
        _refuse_unsupported(sampling)
        end_tokens = frozenset((*self._end_tokens, *sampling.end_tokens))
        items: SimpleQueue[_Item] = SimpleQueue()
        is_cancelled = Event()
        worker = Thread(target=self._work, args=(prompt, sampling, items, is_cancelled))
        worker.start()
        try:
            while (item := items.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                if item.token in end_tokens:
                    return
                yield item
        finally:
            is_cancelled.set()
            worker.join()

    def _work(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        items: "SimpleQueue[_Item]",
        is_cancelled: Event,
    ) -> None:
        """Runs on its own thread: `generate` returns only at the end."""
        try:
            device = self._model.device
            room = self.context_length - len(prompt)
            penalties = _Penalties(prompt, sampling)
            tokens_BT = torch.tensor([list(prompt)], device=device)
            with torch.random.fork_rng(devices=_forked(device), device_type=_kind(device)):
                torch.manual_seed(sampling.seed)
                self._model.generate(  # pyright: ignore[reportCallIssue]: a mixin's method
                    tokens_BT,
                    attention_mask=torch.ones_like(tokens_BT),
                    generation_config=self._config(sampling, room=room),
                    logits_processor=LogitsProcessorList([penalties]),
                    streamer=_Tokens(items, penalties),
                    stopping_criteria=StoppingCriteriaList([_Cancelled(is_cancelled)]),
                )
            items.put(None)
        except BaseException as error:  # noqa: BLE001  raised again by the thread that reads
            items.put(error)

    def _config(self, sampling: Sampling, *, room: int) -> GenerationConfig:
        drawn: dict[str, Any] = (
            {"do_sample": False}
            if sampling.is_greedy
            else {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
                "min_p": sampling.min_p or None,
            }
        )
        return GenerationConfig(
            max_new_tokens=min(sampling.max_new_tokens, room),
            eos_token_id=[*self._end_tokens, *sampling.end_tokens] or None,
            # Never used in a batch of one, but transformers warns when it is missing.
            pad_token_id=self._end_tokens[0] if self._end_tokens else 0,
            use_cache=True,
            **drawn,
        )


def _refuse_unsupported(sampling: Sampling) -> None:
    asked = {
        "ignores_end": sampling.ignores_end,
        "beam search": sampling.beams is not None,
    }
    if names := [name for name, is_asked in asked.items() if is_asked]:
        raise InferError(
            f"the transformers engine has no {', '.join(names)}; the native engine does"
        )


class _Penalties(LogitsProcessor):
    """The native engine's, before temperature and cuts; keeps the model's own logits."""

    def __init__(self, prompt: Sequence[int], sampling: Sampling) -> None:
        self._prompt, self._sampling = prompt, sampling
        self._logits_V = torch.empty(0)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]: transformers' types are aliases of these
        require_numbers(scores, after=input_ids.shape[1] - len(self._prompt))
        (self._logits_V,) = scores
        if not self._sampling.has_penalties:
            return scores
        answer = [int(token) for token in input_ids[0, len(self._prompt) :]]
        return penalized(self._logits_V, self._sampling, prompt=self._prompt, answer=answer)[None]

    def described(self, token: int) -> Chosen:
        """The token that this step's logits led to."""
        return described(self._logits_V, token, self._sampling.logprobs)


class _Tokens(BaseStreamer):
    """Puts each new token into a queue; the first call brings the prompt, which is known."""

    def __init__(self, items: "SimpleQueue[_Item]", penalties: _Penalties) -> None:
        self._items, self._penalties = items, penalties
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if not self._is_prompt:
            for token in value.flatten().tolist():
                self._items.put(self._penalties.described(token))
        self._is_prompt = False

    def end(self) -> None:
        """The worker says so itself, after an error too."""


class _Cancelled(StoppingCriteria):
    """Ends `generate` after the current token."""

    def __init__(self, is_cancelled: Event) -> None:
        self._is_cancelled = is_cancelled

    def __call__(self, input_ids: torch.Tensor, *_: object, **__: object) -> Any:
        shape = (input_ids.shape[0],)
        return torch.full(shape, self._is_cancelled.is_set(), device=input_ids.device)


def _forked(device: torch.device) -> list[int]:
    """Devices whose random state is put back afterwards."""
    return [] if device.type == "cpu" else [device.index or 0]


def _kind(device: torch.device) -> str:
    return "cuda" if device.type == "cpu" else device.type
