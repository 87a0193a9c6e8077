"""Where a decoder's layers go: pipeline stages and their model chunks."""

from __future__ import annotations

from dataclasses import dataclass

from llm_train.config import ParallelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The layers one stage runs in a row; `chunk` counts the chunks of a stage, from 0.

    `places` holds a real layer's number, counted over the whole decoder without noops, or None for
    a noop. A noop is a place that nothing is built for: it computes nothing and has no weights, so
    a checkpoint does not know of it.
    """

    stage: int
    chunk: int
    places: tuple[int | None, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the real layers."""
        return tuple(place for place in self.places if place is not None)


def chunks(parallel: ParallelConfig, num_layers: int) -> tuple[Chunk, ...]:
    """The chunks of a model of `num_layers` real layers, in order of depth.

    The model runs through chunk 0 of every stage, then through chunk 1 of every stage and so on.
    Call it when `check.problems` finds none.
    """
    noops, count = set(parallel.noop_layers), num_layers + len(parallel.noop_layers)
    real = iter(range(num_layers))
    places = [None if place in noops else next(real) for place in range(count)]
    found: list[Chunk] = []
    start = 0
    for depth, size in enumerate(layers_per_chunk(parallel, num_layers)):
        virtual, stage = divmod(depth, parallel.pp)
        mine = tuple(places[start : start + size])
        found.append(Chunk(stage=stage, chunk=virtual, places=mine))
        start += size
    return tuple(found)


def layers_per_chunk(parallel: ParallelConfig, num_layers: int) -> tuple[int, ...]:
    """Layers of every chunk in order of depth, noops included: as told, or as many in each."""
    if parallel.layers_per_stage is not None:
        return parallel.layers_per_stage
    num_chunks = parallel.pp * (parallel.vpp or 1)
    return ((num_layers + len(parallel.noop_layers)) // num_chunks,) * num_chunks
