"""Steps of one token a text, whose tensors keep place and size so that a step can be replayed.

A CUDA graph repeats the kernels of one step over the same memory and saves launching each of them.
Numbers of texts and of their blocks are therefore rounded up to powers of two; texts that fill up
write into a spare block that no text has.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from llm_infer.arch import Arch
from llm_infer.model.cache import LayerPool, Step
from llm_infer.model.steps import Part, has_variants, variant

if TYPE_CHECKING:
    from llm_infer.model.decoder import Decoder

Compute = Callable[[], Tensor]


class Recorder(Protocol):
    """Makes what computes one function again and again, faster."""

    def record(self, compute: Compute) -> Compute:
        """The same over what `compute`'s tensors hold by then; the result may be overwritten later.

        `compute` may run more than once here.
        """
        ...


class CudaGraphs:
    """A `Recorder` on a CUDA device; all graphs share one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, compute: Compute) -> Compute:
        """See `Recorder`. Runs it first outside the graph: libraries set themselves up then."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            compute()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            out = compute()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


def reason_against(arch: Arch) -> str | None:
    """Why a model's steps cannot be replayed; None when they can."""
    if arch.mla is not None and arch.mla.indexer is not None:
        return "which keys are attended to depends on the tokens"
    for run in arch.layers:
        if run.mixer not in ("attention", "mla", "none"):
            return f"{run.mixer} layers keep states outside the cache of keys"
        if run.feed_forward not in ("dense", "none"):
            return "which experts run depends on the tokens"
    return None


@dataclass(frozen=True, slots=True)
class _Replay:
    step: Step
    compute: Compute


@dataclass(slots=True)
class StaticSteps:
    """Replayed steps over a runner's pools, one a size, recorded when a size is first met."""

    decoder: "Decoder"
    pools: Sequence[LayerPool | None]
    block_tokens: int
    spare_block: int
    recorder: Recorder
    _replays: dict[tuple[int, int], _Replay] = field(
        default_factory=dict[tuple[int, int], _Replay], init=False
    )

    def run(self, parts: Sequence[Part]) -> Tensor:
        """float32 logits [R, V] after parts of one token each."""
        size = _power_of_two(len(parts)), _power_of_two(max(len(one.blocks) for one in parts))
        if size not in self._replays:
            step = self._empty(*size)
            self._fill(step, parts)
            compute = self.recorder.record(lambda: self.decoder.forward(step, self.pools))
            self._replays[size] = _Replay(step, compute)
        replay = self._replays[size]
        self._fill(replay.step, parts)
        return replay.compute()[: len(parts)].clone()

    def _empty(self, texts: int, width: int) -> Step:
        def numbers(*sizes: int) -> Tensor:
            return torch.zeros(sizes, dtype=torch.long, device=self.decoder.device)

        return Step(
            tokens=numbers(texts),
            positions=numbers(texts),
            slots=numbers(texts),
            variants=numbers(texts) if has_variants(self.decoder) else None,
            segments=(),
            last_rows=torch.arange(texts, device=self.decoder.device),
            block_tokens=self.block_tokens,
            tables=numbers(texts, width),
        )

    def _fill(self, step: Step, parts: Sequence[Part]) -> None:
        """Put parts into a step's tensors, where they lie."""
        assert step.tables is not None
        texts, width = step.tables.shape
        size, spare = self.block_tokens, self.spare_block
        missing = texts - len(parts)
        slots = [one.blocks[one.first // size] * size + one.first % size for one in parts]
        tables = [[*one.blocks, *[spare] * (width - len(one.blocks))] for one in parts]
        _put(step.tokens, [one.tokens[0] for one in parts] + [0] * missing)
        _put(step.positions, [one.first for one in parts] + [0] * missing)
        _put(step.slots, slots + [spare * size] * missing)
        _put(step.tables, tables + [[spare] * width] * missing)
        if step.variants is not None:
            _put(step.variants, [variant(one, self.decoder) for one in parts] + [0] * missing)


def _put(target: Tensor, values: Sequence[object]) -> None:
    target.copy_(torch.tensor(values, dtype=torch.long))


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
