"""The native engine, which can tell the probabilities of a prompt's tokens too."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from llm_infer.engine import Event, TokenLogprob
from llm_infer.engines.guided import GuidedEngine
from llm_infer.errors import BrokenModelError
from llm_infer.logits import Chosen, described
from llm_infer.sampling import Sampling
from llm_infer.scheduler import Work


@dataclass(slots=True)
class _Reading:
    """What is known of a prompt's tokens, by position; the first has no probability."""

    num_top: int
    logprobs: dict[int, TokenLogprob] = field(default_factory=dict[int, TokenLogprob])
    is_told: bool = False


class PromptedEngine(GuidedEngine):
    """A `PromptReadingEngine`. No prompt that is read comes from the cache."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        """See `NativeEngine`."""
        super().__init__(*arguments, **settings)
        self._readings: dict[int, _Reading] = {}

    def submit_read(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """Queue a request; see `PromptReadingEngine`. ValueError for a beam search."""
        if sampling.beams is not None:
            raise ValueError("beams: a search tells no probabilities of its prompt")
        number = self.submit(prompt, sampling)
        self._state.requests[number].text.first_wanted = 0
        self._readings[number] = _Reading(sampling.logprobs or 0)
        return number

    def cancel(self, request: int) -> None:
        """End a request at once; what is known of its prompt goes with it."""
        self._readings.pop(request, None)
        super().cancel(request)

    def _compute(self, works: Sequence[Work]) -> Tensor:
        readings = [self._readings.get(work.sequence.id) for work in works]
        if all(one is None or one.is_told for one in readings):
            return super()._compute(works)
        rows, last_rows = list[int](), list[int]()
        read: list[tuple[int, _Reading, int, int]] = []
        step_row = 0
        for work, one in zip(works, readings, strict=True):
            text = work.sequence
            if one is not None:
                for position in range(work.start, min(work.stop, text.num_prompt - 1)):
                    read.append((len(rows), one, position + 1, text.tokens[position + 1]))
                    rows.append(step_row + position - work.start)
            if work.is_last:
                last_rows.append(len(rows))
                rows.append(step_row + work.stop - work.start - 1)
            step_row += work.stop - work.start
        logits_RV = self._runner.run(self._parts(works), rows=rows)
        for row, one, position, token in read:
            found = described(logits_RV[row], token, one.num_top)
            assert found.logprob is not None
            one.logprobs[position] = TokenLogprob(found.logprob, found.top_logprobs)
        return logits_RV[last_rows]

    def _append(self, request: Any, chosen: Chosen) -> Event:
        reading = self._readings.get(request.text.id)
        if reading is None:
            return super()._append(request, chosen)
        told = [] if reading.is_told else _told(reading, request.text.num_prompt)
        event = super()._append(request, chosen)
        if event.token is None:
            last = TokenLogprob(chosen.logprob, chosen.top_logprobs)
            event = replace(event, ended_by=(chosen.token, last))
        if not reading.is_told:
            reading.is_told = True
            event = replace(event, prompt_logprobs=tuple(told))
        return event


def _told(reading: _Reading, num_prompt: int) -> list[TokenLogprob]:
    """The probabilities of all tokens but the first; BrokenModelError for what is no number."""
    found = [reading.logprobs[position] for position in range(1, num_prompt)]
    for position, one in enumerate(found, start=1):
        if one.logprob is None or not math.isfinite(one.logprob):
            raise BrokenModelError(
                f"token {position} of the prompt has the log-probability {one.logprob}: "
                "the model's weights are broken, or its numbers too large for their type"
            )
    return found
