"""NeedleBench's questions as tasks of lm-evaluation-harness, which has none over its files.

Its RULER tasks hide needles too, but make their own, and fetch essays and a sentence splitter.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetDict
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask

from llm_eval.needlebench import NUM_REPEATS, Haystack, Size, Spec, score

# As many as MindSpeed-LLM lets its models write.
_MAX_NEW_TOKENS = 64
_VERSION = 1.0

Doc = Mapping[str, Any]


class NeedleTask(ConfigurableTask):
    """One language of NeedleBench at one size; a document is a length, a depth and a repeat.

    Metrics: `score` (0 to 100), and the same for each length and each depth alone. The documents
    go through every length and depth before a repeat, so that `--limit` keeps whole grids.
    """

    def __init__(self, name: str, *, spec: Spec, size: Size, haystack: Haystack) -> None:
        self._name, self._size, self._haystack = name, size, haystack
        self._spare_tokens = size.spare_tokens[spec.language]
        super().__init__(config=self._harness_config())

    def download(self, *_: object, **__: object) -> None:
        """Nothing to fetch: the grid of questions."""
        rows = [
            {
                "length": length,
                "depth": depth,
                "repeat": repeat,
                "needle": self._haystack.needle(repeat).text,
                "keyword": self._haystack.needle(repeat).keyword,
            }
            for repeat in range(NUM_REPEATS)
            for length in self._size.lengths
            for depth in self._size.depths
        ]
        self.dataset = DatasetDict({"test": Dataset.from_list(rows)})

    def dump_config(self) -> dict[str, Any]:
        """The settings in plain values: the default would print our source code."""
        config = self._harness_config()
        plain = {key: value for key, value in config.items() if not callable(value)}
        metrics = [{"metric": name, "higher_is_better": True} for name in self._metrics()]
        return plain | {"metric_list": metrics, "spare_tokens": self._spare_tokens}

    def _metrics(self) -> list[str]:
        lengths = [f"score_length_{length}" for length in self._size.lengths]
        return ["score", *lengths, *(f"score_depth_{depth}" for depth in self._size.depths)]

    def _ask(self, doc: Doc) -> str:
        return self._haystack.prompt(
            length=doc["length"],
            depth=doc["depth"],
            repeat=doc["repeat"],
            spare_tokens=self._spare_tokens,
        )

    def _judge(self, doc: Doc, results: Sequence[str]) -> dict[str, float]:
        found = score(results[0], self._haystack.needle(doc["repeat"]))
        names = ("score", f"score_length_{doc['length']}", f"score_depth_{doc['depth']}")
        return dict.fromkeys(names, found)

    def _harness_config(self) -> dict[str, Any]:
        return {
            "task": self._name,
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": self._ask,
            "doc_to_target": "{{needle}}",
            "process_results": self._judge,
            "num_fewshot": 0,
            "generation_kwargs": {
                "until": [],
                "max_gen_toks": _MAX_NEW_TOKENS,
                "do_sample": False,
                "temperature": 0.0,
            },
            "metric_list": [
                {"metric": name, "aggregation": mean, "higher_is_better": True}
                for name in self._metrics()
            ],
            "metadata": {"version": _VERSION},
        }
