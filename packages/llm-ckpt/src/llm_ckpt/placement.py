"""Where layers and experts live: pipeline stages and chunks, expert-parallel blocks, rank files.

Chunks of layers are numbered in the order a token meets them. Interleaved: chunk `c` of `pp * vpp`
sits on stage `c % pp` as that stage's chunk `c // pp`. DualPipeV: down the stages, then back up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import lcm
from typing import Literal

from llm_ckpt.errors import LayoutError
from llm_ckpt.layout import Shard

Schedule = Literal["interleaved", "dualpipev"]


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a layer lives: pipeline stage, chunk of that stage, position in the chunk."""

    stage: int
    chunk: int
    local: int


@dataclass(frozen=True, slots=True)
class ChunkPlace:
    """Where a chunk of layers lives: pipeline stage, and which of that stage's chunks it is."""

    stage: int
    chunk: int


FIRST = ChunkPlace(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A pipeline layout; `vpp` is the number of model chunks a stage (1 = not interleaved).

    `layers_per_chunk` is Megatron-LM's other way to say `vpp`; `noop_layers` are indices in the
    numbering that counts them.
    """

    pp: int = 1
    vpp: int = 1
    layers_per_stage: tuple[int, ...] | None = None
    noop_layers: tuple[int, ...] = ()
    schedule: Schedule = "interleaved"
    layers_per_chunk: int | None = None

    def resolved(self, num_layers: int) -> "Pipeline":
        """The same with `vpp` worked out for a model of `num_layers` real layers."""
        if self.schedule == "dualpipev":
            return self._resolved_dualpipev()
        if self.layers_per_chunk is None:
            return self
        padded, each = num_layers + len(self.noop_layers), self.layers_per_chunk
        if self.vpp > 1:
            raise LayoutError(f"layers a chunk({each}) and vpp({self.vpp}): want one of them")
        if padded % (self.pp * each):
            raise LayoutError(
                f"layers({padded}) % (pp({self.pp}) * layers a chunk({each})) = "
                f"{padded % (self.pp * each)}, want 0"
            )
        return replace(self, vpp=padded // (self.pp * each), layers_per_chunk=None)

    def place(self, num_layers: int) -> tuple[Slot, ...]:
        """One slot a real layer, in order; noop layers take a slot nobody gets."""
        pipeline = self.resolved(num_layers)
        sizes = pipeline._chunk_sizes(num_layers + len(self.noop_layers))
        slots = slots_of(sizes, pipeline.places())
        return tuple(slot for i, slot in enumerate(slots) if i not in self.noop_layers)

    def places(self) -> tuple[ChunkPlace, ...]:
        """The place of each chunk, in the order a token meets them."""
        return chunk_places(self.pp, self.vpp, self.schedule)

    @property
    def head(self) -> ChunkPlace:
        """Where the final norm, the output layer and prediction layers are."""
        return self.places()[-1]

    def _resolved_dualpipev(self) -> "Pipeline":
        if self.pp == 1 or self.vpp not in (1, 2) or self.layers_per_chunk or self.layers_per_stage:
            raise LayoutError(
                f"dualpipev has 2 chunks a stage and pp > 1; found pp({self.pp}), vpp({self.vpp}), "
                f"layers a chunk({self.layers_per_chunk}), num-layer-list({self.layers_per_stage})"
            )
        return replace(self, vpp=2)

    def _chunk_sizes(self, padded: int) -> tuple[int, ...]:
        if self.vpp > 1 and self.pp == 1:
            raise LayoutError(f"vpp({self.vpp}) needs pp > 1, but pp is 1")
        if bad := [i for i in self.noop_layers if not 0 <= i < padded]:
            raise LayoutError(f"noop layer {bad[0]} is not in 0..{padded - 1}")
        if len(set(self.noop_layers)) < len(self.noop_layers):
            raise LayoutError(f"noop layers {self.noop_layers}: a layer is named twice")
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


def chunk_places(pp: int, vpp: int, schedule: Schedule) -> tuple[ChunkPlace, ...]:
    """The place of each of `pp * vpp` chunks."""
    if schedule == "dualpipev":
        down = [ChunkPlace(stage, 0) for stage in range(pp)]
        return (*down, *(ChunkPlace(stage, 1) for stage in reversed(range(pp))))
    return tuple(ChunkPlace(c % pp, c // pp) for c in range(pp * vpp))


def slots_of(chunk_sizes: Sequence[int], places: Sequence[ChunkPlace]) -> tuple[Slot, ...]:
    """Slots in global layer order for chunks of the given sizes at the given places."""
    ends = list(accumulate(chunk_sizes))
    slots: list[Slot] = []
    for place, end, size in zip(places, ends, chunk_sizes, strict=True):
        for layer in range(end - size, end):
            slots.append(Slot(place.stage, place.chunk, layer - (end - size)))
    return tuple(slots)


@dataclass(frozen=True, slots=True)
class Rank:
    """What one file of a stage holds: a tensor-parallel piece, and pieces of a block of experts.

    Experts `block * n … (block + 1) * n - 1` of `blocks * n`, each cut as `expert` says.
    """

    tp: int
    ep: int
    tensor: Shard
    expert: Shard
    block: int
    blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Tensor and expert parallelism; `etp` None is as many as `tp`, as in megatron-core.

    `tp_extends_ep` is MindSpeed-LLM's moe-tp-extend-ep: experts are dealt out over ep * tp ranks
    and none is cut.
    """

    tp: int = 1
    ep: int = 1
    etp: int | None = None
    tp_extends_ep: bool = False

    @property
    def expert_tensor(self) -> int:
        """Ranks that share one expert."""
        if self.tp_extends_ep:
            return 1
        return self.tp if self.etp is None else self.etp

    @property
    def blocks(self) -> int:
        """Blocks that the experts are divided into."""
        return self.ep * self.tp if self.tp_extends_ep else self.ep

    def rank(self, tp: int, ep: int, etp: int) -> Rank:
        """The file of these ranks."""
        block = ep * self.tp + tp if self.tp_extends_ep else ep
        shards = Shard(tp, self.tp), Shard(etp, self.expert_tensor)
        return Rank(tp, ep, *shards, block, self.blocks)

    def ranks(self) -> tuple[Rank, ...]:
        """One for each file of a stage that exists, as megatron-core deals ranks out.

        Global rank r has tp = r % TP, etp = r % ETP and ep = (r // ETP) % EP.
        """
        if self.tp_extends_ep:
            if self.etp not in (None, 1):
                raise LayoutError(f"moe-tp-extend-ep cuts no expert: etp({self.etp}), want 1")
            return tuple(self.rank(t, e, 0) for e in range(self.ep) for t in range(self.tp))
        size, found = self.expert_tensor, dict[tuple[int, int], int]()
        for r in range(lcm(self.tp, size * self.ep)):
            tp, ep, etp = r % self.tp, (r // size) % self.ep, r % size
            if found.setdefault((ep, tp), etp) != etp:
                raise LayoutError(
                    f"tp({self.tp}), ep({self.ep}), etp({size}): the file of tp rank {tp} and ep "
                    f"rank {ep} would hold the expert pieces {found[ep, tp]} and {etp}: rank {r} "
                    f"has tp {r} % {self.tp} = {tp}, etp {r} % {size} = {etp}; want an etp that "
                    "divides tp"
                )
        return tuple(self.rank(tp, ep, etp) for (ep, tp), etp in sorted(found.items()))

    def check_experts(self, experts: int) -> None:
        """Refuse experts that the blocks do not divide."""
        if experts % self.blocks:
            what = f"ep({self.ep})" + (f" * tp({self.tp})" if self.tp_extends_ep else "")
            raise LayoutError(f"experts({experts}) % ({what}) = {experts % self.blocks}, want 0")
