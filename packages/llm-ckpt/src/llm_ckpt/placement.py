"""Which pipeline stage, virtual chunk and local position each layer has.

Chunks are numbered in megatron-core's interleaved order: chunk `c` of `pp * vpp` sits on stage
`c % pp` as that stage's chunk number `c // pp`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from llm_ckpt.errors import LayoutError


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a layer lives: pipeline stage, chunk of that stage, position in the chunk."""

    stage: int
    chunk: int
    local: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A pipeline layout; `vpp` is the number of model chunks a stage (1 = not interleaved)."""

    pp: int = 1
    vpp: int = 1
    layers_per_stage: tuple[int, ...] | None = None
    noop_layers: tuple[int, ...] = ()

    def place(self, num_layers: int) -> tuple[Slot, ...]:
        """One slot a real layer, in order; noop layers take a slot nobody gets."""
        sizes = self._chunk_sizes(num_layers + len(self.noop_layers))
        return tuple(
            slot for i, slot in enumerate(slots_of(sizes, self.pp)) if i not in self.noop_layers
        )

    def _chunk_sizes(self, padded: int) -> tuple[int, ...]:
        if self.vpp > 1 and self.pp == 1:
            raise LayoutError(f"vpp({self.vpp}) needs pp > 1, but pp is 1")
        if bad := [i for i in self.noop_layers if not 0 <= i < padded]:
            raise LayoutError(f"noop layer {bad[0]} is not in 0..{padded - 1}")
        if self.layers_per_stage is not None:
            return self._uneven(padded, self.layers_per_stage)
        chunks = self.pp * self.vpp
        if padded % chunks:
            detail = f"layers({padded}) % (pp({self.pp}) * vpp({self.vpp}))"
            raise LayoutError(f"{detail} = {padded % chunks}, want 0; or give a num-layer-list")
        return (padded // chunks,) * chunks

    def _uneven(self, padded: int, counts: tuple[int, ...]) -> tuple[int, ...]:
        text = " + ".join(map(str, counts))
        if self.vpp > 1 or self.noop_layers:
            raise LayoutError("num-layer-list goes with neither vpp nor noop layers")
        if len(counts) != self.pp:
            raise LayoutError(f"num-layer-list {text} has {len(counts)} entries, pp is {self.pp}")
        if sum(counts) != padded or min(counts) < 1:
            raise LayoutError(
                f"num-layer-list {text} = {sum(counts)}, want {padded} layers, at least 1 a stage"
            )
        return counts


def slots_of(chunk_sizes: Sequence[int], pp: int) -> tuple[Slot, ...]:
    """Slots in global layer order for chunks of the given sizes, in interleaved order."""
    ends = list(accumulate(chunk_sizes))
    slots: list[Slot] = []
    for chunk, (end, size) in enumerate(zip(ends, chunk_sizes, strict=True)):
        for layer in range(end - size, end):
            slots.append(Slot(chunk % pp, chunk // pp, layer - (end - size)))
    return tuple(slots)
