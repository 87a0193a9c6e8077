"""HumanEval's functions, over a sandbox instead of lm-eval's unprotected runner.

lm-eval's own fetch the `code_eval` metric from the hub and run programs in a plain process; the
names here are those its task files mention.
"""

from collections.abc import Callable, Mapping, Sequence
from math import comb

# Whether a program runs to its last line.
Passes = Callable[[str], bool]

Doc = Mapping[str, object]


def functions(passes: Passes) -> dict[str, Callable[..., object]]:
    """What stands for `!function utils.…` in the task files, by folder and name."""

    def pass_at_k(
        references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int] | int
    ) -> dict[str, float]:
        """Mean of the unbiased estimate over the problems (Chen et al. 2021, equation 1)."""
        sizes = (k,) if isinstance(k, int) else tuple(k)
        counts = [
            (len(tried), sum(passes(f"{program}\n{reference}\n") for program in tried))
            for reference, tried in zip(references, predictions, strict=True)
        ]
        return {
            f"pass@{size}": sum(_estimate(n, c, size) for n, c in counts) / len(counts)
            for size in sizes
            if all(n >= size for n, _ in counts)
        }

    return {
        "humaneval/utils.pass_at_k": pass_at_k,
        "humaneval/utils.build_predictions": build_predictions,
        "humaneval/utils.build_predictions_instruct": build_predictions_instruct,
    }


def build_predictions(resps: Sequence[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """The prompt, a function's head, with each continuation."""
    return [[f"{doc['prompt']}{r}" for r in tried] for tried, doc in zip(resps, docs, strict=True)]


def build_predictions_instruct(
    resps: Sequence[Sequence[str]], docs: Sequence[Doc]
) -> list[list[str]]:
    """The same, each continuation up to the end of its block of code."""
    cut = [[r.partition("```")[0] for r in tried] for tried in resps]
    return build_predictions(cut, docs)


def _estimate(tried: int, correct: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k): the chance that k of n tries hold a correct one."""
    return 1.0 - comb(tried - correct, k) / comb(tried, k)
