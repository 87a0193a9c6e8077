"""The native engine, with answers that can be held to a grammar."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llm_infer.engines.native import NativeEngine
from llm_infer.guide import Guide
from llm_infer.logits import Chosen
from llm_infer.sampling import Sampling


class GuidedEngine(NativeEngine):
    """A `GuidingEngine`. Log-probabilities of a guided answer are those among allowed tokens."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        """See `NativeEngine`."""
        super().__init__(*arguments, **settings)
        self._guides: dict[int, Guide] = {}

    def submit_guided(self, prompt: Sequence[int], sampling: Sampling, guide: Guide) -> int:
        """Queue a request; see `GuidingEngine`. ValueError for a beam search."""
        if sampling.beams is not None:
            raise ValueError("beams: a search is held to no grammar")
        number = self.submit(prompt, sampling)
        self._guides[number] = guide
        return number

    def cancel(self, request: int) -> None:
        """End a request at once; its guide goes with it."""
        self._guides.pop(request, None)
        super().cancel(request)

    def _choose(self, logits_RV: Tensor, ready: Sequence[Any]) -> "Sequence[Chosen | Exception]":
        failures = dict[int, Exception]()
        guides = {row: self._guides.get(one.text.id) for row, one in enumerate(ready)}
        if any(guides.values()):
            # The decoder's own tensor must stay as it is: it was made for inference only.
            logits_RV = logits_RV.clone()
        for row, guide in guides.items():
            if guide is None:
                continue
            try:
                allowed = guide.allowed(ready[row].answer)
            except Exception as error:  # noqa: BLE001  the failure of this request
                failures[row] = error
            else:
                logits_RV[row].masked_fill_(_refused(allowed, logits_RV[row]), float("-inf"))
        found = super()._choose(logits_RV, ready)
        return [failures.get(row, one) for row, one in enumerate(found)]


def _refused(allowed: bytes, like_V: Tensor) -> Tensor:
    """True for each token that may not come, and for rows of the model without a token."""
    is_refused_V = torch.ones(like_V.shape, dtype=torch.bool)
    # A tokenizer may have tokens that the model has no row for.
    marks = torch.frombuffer(bytearray(allowed), dtype=torch.uint8)[: like_V.shape[0]]
    is_refused_V[: marks.shape[0]] = marks == 0
    return is_refused_V.to(like_V.device)
