"""lm-eval's own `hf` model over a loaded transformers model, its batches remembered."""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models import huggingface
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm_eval.errors import EvalError
from llm_eval.harness.models import Recall, Score, batch_key

# The decorator that registers HFLM hides the class from a type checker.
_HFLM: Any = huggingface.HFLM


class ResumableHF(_HFLM):
    """HFLM that asks `recall` before it scores a batch of rolling windows.

    With `is_tokens` a text is token ids in decimal, with spaces between them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        max_length: int | None = None,
        recall: Recall | None = None,
        is_tokens: bool = False,
    ) -> None:
        super().__init__(
            pretrained=model,
            backend="causal",
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=max_length,
        )
        self._recall = recall
        self._is_rolling = False
        weight: Any = model.get_input_embeddings().weight
        self._num_ids: int | None = weight.shape[0] if is_tokens else None

    def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
        """As lm-eval's; token ids as they are, none beyond the model's vocabulary."""
        if self._num_ids is None:
            return super().tok_encode(string, *args, **kwargs)
        tokens = [int(word) for word in string.split()]
        unknown = next((token for token in tokens if not 0 <= token < self._num_ids), None)
        if unknown is not None:
            raise EvalError(f"token {unknown}: the model knows 0 to {self._num_ids - 1}")
        return tokens

    def num_tokens(self, text: str) -> int:
        """Tokens predicted in a rolling pass over the text."""
        return len(self.tok_encode(text))

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """HFLM's own windows and batches; the window scores pass through `recall`."""
        self._is_rolling = True
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        finally:
            self._is_rolling = False

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        if self._recall is None or not self._is_rolling:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        windows: list[tuple[Any, ...]] = [tuple(request[1:]) for request in requests]

        def compute() -> Sequence[Score]:
            scores = super(ResumableHF, self)._loglikelihood_tokens(requests, True, override_bs)
            return [(logprob, int(greedy)) for logprob, greedy in scores]

        num_tokens = sum(len(predicted) for _, predicted in windows)
        scores = self._recall(batch_key(windows), compute, num_tokens=num_tokens)
        return [(logprob, bool(greedy)) for logprob, greedy in scores]
