"""Perplexity over given documents, as a task of lm-evaluation-harness.

The same output type, metrics and aggregations as its `wikitext` task, over documents held in
memory; one metric is added, the perplexity per token.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetDict
from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
from lm_eval.api.task import ConfigurableTask, Task

from llm_eval.documents import Document

TASK_NAME = "perplexity"
METRICS = ("token_perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")

Weighted = tuple[float, int]


class PerplexityTask(ConfigurableTask):
    """lm-eval's rolling log-likelihood task over documents instead of a hub data set.

    With `is_tokens` the texts are token ids, of which only the perplexity per token is known.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        num_tokens: Callable[[str], int],
        *,
        is_tokens: bool = False,
    ) -> None:
        self._documents = documents
        self._metrics = METRICS[:1] if is_tokens else METRICS

        def measure(doc: Mapping[str, str], results: Sequence[float]) -> dict[str, Weighted]:
            found = _measures(doc["text"], results[0], num_tokens(doc["text"]))
            return {name: found[name] for name in self._metrics}

        super().__init__(config=_config(measure, self._metrics))

    def download(self, *_: object, **__: object) -> None:
        """Nothing to fetch: the documents are here."""
        rows = [{"name": document.name, "text": document.text} for document in self._documents]
        self.dataset = DatasetDict({"test": Dataset.from_list(rows)})

    def dump_config(self) -> dict[str, Any]:
        """The settings in plain values: the default would print our source code."""
        metrics = [{"metric": name, "higher_is_better": False} for name in self._metrics]
        return {
            "task": TASK_NAME,
            "output_type": self.OUTPUT_TYPE,
            "num_fewshot": 0,
            "metric_list": metrics,
            "metadata": {"version": 1.0},
        }


def _measures(text: str, logprob: float, num_tokens: int) -> dict[str, Weighted]:
    """What lm-eval's own rolling tasks measure, and the number of tokens."""
    num_words, num_bytes = Task.count_words(text), Task.count_bytes(text)
    return {
        "token_perplexity": (logprob, num_tokens),
        "word_perplexity": (logprob, num_words),
        "byte_perplexity": (logprob, num_bytes),
        "bits_per_byte": (logprob, num_bytes),
    }


def _config(measure: Callable[..., dict[str, Weighted]], metrics: Sequence[str]) -> dict[str, Any]:
    aggregations = dict.fromkeys(METRICS, finite_perplexity) | {"bits_per_byte": bits_per_byte}
    return {
        "task": TASK_NAME,
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "process_results": measure,
        "num_fewshot": 0,
        "metric_list": [
            {"metric": name, "aggregation": aggregations[name], "higher_is_better": False}
            for name in metrics
        ],
        "metadata": {"version": 1.0},
    }


def finite_perplexity(items: Sequence[Weighted]) -> float:
    """lm-eval's weighted perplexity; infinity where that overflows.

    Text without white space (Chinese, minified code) is one "word" of a thousand nats.
    """
    try:
        return weighted_perplexity(items)
    except OverflowError:
        return math.inf
