"""The tensors of adapters: where they lie, their first values, and which base they are for."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from llm_train.model.build import Model
from llm_train.model.experts import Experts
from llm_train.model.fill import cut_places, name_seed
from llm_train.model.lora.adapter import Adapter, Cut, EmbeddingAdapter, ExpertsAdapter, first_bound
from llm_train.model.lora.pieces import Held, Piece, cut_pieces, own_rows
from llm_train.model.names import EXPERTS, NamedTensor, base_tensors, named_tensors
from llm_train.model.shards import local, rows

# Entries of each base weight that its digest looks at.
_DIGESTED = 8
_ENTRIES = "digested_entries"
# The last part of the key of a tensor that trains whole, behind its name in the model.
SAVED = "saved"
_VOCABULARY = ("embedding.word_embeddings.", "output_layer.")


def adapter_tensors(chunk: Model) -> Iterator[Held]:
    """Every trained tensor of a chunk's adapters, and of modules that train whole beside them, as
    much of it as this rank keeps.
    """
    return map(own_rows, _whole_tensors(chunk))


def held_whole(named: NamedTensor, chunk: Model) -> Held:
    """A parameter of the base itself, as much of it as this rank keeps."""
    return own_rows(_of_whole(named, chunk))


def _whole_tensors(chunk: Model) -> Iterator[Held]:
    by_name = {one.name: one for one in named_tensors(chunk)}
    for named in base_tensors(chunk):
        if named.tensor.requires_grad:
            yield _of_whole(named, chunk)
    for module in chunk.modules():
        found = getattr(module, "lora", None)
        if isinstance(found, Adapter):
            yield from _of_linear(found, by_name[f"{found.name}.weight"], chunk)
        elif isinstance(found, EmbeddingAdapter):
            yield from _of_embedding(found, by_name[f"{found.name}.weight"], chunk)
        elif isinstance(module, Experts):
            for linear, one in module.adapters.items():
                yield from _of_experts(cast("ExpertsAdapter", one), module, linear, chunk)


@torch.no_grad()
def fill_adapters(chunks: Sequence[Model], *, seed: int) -> None:
    """First values, the same at every layout: A random and B zero, of embeddings the other way.

    The lengths that DoRA begins with are those of the base's rows.
    """
    for chunk in chunks:
        for held in adapter_tensors(chunk):
            side = held.name.rpartition(".")[2]
            if side == SAVED:
                continue
            held.tensor.zero_()
            is_embedding = held.name.startswith("embedding.")
            if side == "lora_magnitude" or (side == "lora_A") == is_embedding:
                continue
            for piece in held.pieces:
                whole = torch.empty(piece.shape)
                generator = torch.Generator().manual_seed(name_seed(piece.key, seed))
                if is_embedding:
                    whole.normal_(generator=generator)
                else:
                    bound = first_bound(piece.shape[-1])
                    whole.uniform_(-bound, bound, generator=generator)
                mine = held.tensor[piece.index]
                index = tuple(
                    slice(start, start + count)
                    for start, count in zip(piece.offset, mine.shape, strict=True)
                )
                mine.copy_(whole[index])
        for module in chunk.modules():
            found = getattr(module, "lora", None)
            if not isinstance(found, Adapter | EmbeddingAdapter) or not found.form.is_dora:
                continue
            weight = local(cast("torch.Tensor", module.weight))
            is_linear = isinstance(found, Adapter)
            # The adapter of an embedding adds nothing yet.
            lengths = found.lengths_of_base(weight) if is_linear else found.lengths(weight)
            local(found.magnitude).copy_(lengths)


def base_digest(chunks: Sequence[Model]) -> str:
    """A digest of the frozen weights, the same at every layout: a few entries of each.

    Every rank calls it, before the weights are changed in any way but by `keep_digested`.
    """
    # By name and place of the first: where rows are shared out, ranks have the entries together.
    mine: dict[tuple[str, int], list[float]] = {}
    for named in (named for chunk in chunks for named in base_tensors(chunk)):
        if named.tensor.dim() and named.shard[0] == 0:
            first = rows(named.tensor).start * named.tensor[:1].numel()
            found = getattr(named.tensor, _ENTRIES, None) or _digested(local(named.tensor))
            mine[named.name, first] = found[: max(0, _DIGESTED - first)]
    everywhere: list[dict[tuple[str, int], list[float]]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everywhere, mine)
    entries: dict[str, list[float]] = {}
    for (name, _), row in sorted(
        {key: r for part in everywhere for key, r in part.items()}.items()
    ):
        entries.setdefault(name, []).extend(row)
    return hashlib.sha256(repr(sorted(entries.items())).encode()).hexdigest()


def keep_digested(made: torch.Tensor, weight: torch.Tensor) -> None:
    """Let the digest see `weight` in what it was made into."""
    setattr(made, _ENTRIES, _digested(weight))


def _digested(weight: torch.Tensor) -> list[float]:
    """As bf16 has them: a run in another precision has the same base."""
    return weight.detach().reshape(-1)[:_DIGESTED].bfloat16().tolist()


def _of_linear(adapter: Adapter, weight: NamedTensor, chunk: Model) -> Iterator[Held]:
    rank = adapter.form.rank
    cut = adapter.place.cut
    outputs, inputs = weight.tensor.shape
    sizes = {Cut.OUTPUTS: outputs, Cut.INPUTS: inputs}
    places = range(sizes.get(cut, 0)) if cut is Cut.NONE else cut_places(weight)
    whole = {Cut.OUTPUTS: outputs, Cut.INPUTS: inputs}
    if cut is not Cut.NONE:
        whole[cut] = sizes[cut] * weight.shard[1]
    if adapter.name == "output_layer":
        whole[Cut.OUTPUTS] = chunk.real_vocab_size
    parts: list[tuple[str, torch.nn.Parameter, tuple[int, ...], Cut, int]] = [
        ("lora_A", adapter.A, (rank, whole[Cut.INPUTS]), Cut.INPUTS, 1),
        ("lora_B", adapter.B, (whole[Cut.OUTPUTS], rank), Cut.OUTPUTS, 0),
    ]
    if adapter.form.is_dora:
        shape = (whole[Cut.OUTPUTS],)
        parts.append(("lora_magnitude", adapter.magnitude, shape, Cut.OUTPUTS, 0))
    for side, tensor, shape, axis_cut, axis in parts:
        key, is_cut = f"{adapter.name}.{side}", cut is axis_cut
        pieces = cut_pieces(key, shape, axis=axis, places=places if is_cut else range(shape[axis]))
        yield Held(name=key, parameter=tensor, pieces=pieces, replica=_replica(is_cut=is_cut))


def _of_embedding(adapter: EmbeddingAdapter, weight: NamedTensor, chunk: Model) -> Iterator[Held]:
    rank, vocab = adapter.form.rank, chunk.real_vocab_size
    a, b = f"{adapter.name}.lora_A", f"{adapter.name}.lora_B"
    rows = cut_pieces(a, (rank, vocab), axis=1, places=cut_places(weight))
    yield Held(name=a, parameter=adapter.A, pieces=rows, replica=_replica(is_cut=True))
    hidden = adapter.B.shape[0]
    whole = cut_pieces(b, (hidden, rank), axis=0, places=range(hidden))
    yield Held(name=b, parameter=adapter.B, pieces=whole, replica=_replica(is_cut=False))
    if adapter.form.is_dora:
        name = f"{adapter.name}.lora_magnitude"
        one = cut_pieces(name, (hidden,), axis=0, places=range(hidden))
        yield Held(
            name=name, parameter=adapter.magnitude, pieces=one, replica=_replica(is_cut=False)
        )


def _of_whole(named: NamedTensor, chunk: Model) -> Held:
    key, shape = f"{named.name}.{SAVED}", list(named.tensor.shape)
    axis = getattr(named.tensor, "partition_dim", -1)
    is_cut = axis >= 0
    places = cut_places(named) if is_cut else range(shape[0])
    if is_cut:
        shape[axis] *= named.shard[1]
    if named.name.startswith(_VOCABULARY):
        shape[0] = chunk.real_vocab_size
    pieces = cut_pieces(key, tuple(shape), axis=max(axis, 0), places=places)
    parameter = cast("torch.nn.Parameter", named.tensor)
    return Held(name=key, parameter=parameter, pieces=pieces, replica=_replica(is_cut=is_cut))


def _of_experts(
    adapter: ExpertsAdapter, module: Experts, linear: str, chunk: Model
) -> Iterator[Held]:
    weights = [one for one in named_tensors(chunk) if _is_of(one, module, linear)]
    rank = adapter.form.rank
    outputs, inputs = weights[0].tensor.shape
    size = weights[0].shard[1]
    cut = adapter.place.cut
    whole = {
        "lora_A": (rank, inputs * (size if cut is Cut.INPUTS else 1)),
        "lora_B": (outputs * (size if cut is Cut.OUTPUTS else 1), rank),
    }
    for side, tensor, axis_cut, axis in (
        ("lora_A", adapter.A, Cut.INPUTS, 1),
        ("lora_B", adapter.B, Cut.OUTPUTS, 0),
    ):
        pieces: list[Piece] = []
        for number, weight in enumerate(weights):
            key = f"{weight.name.removesuffix('.weight')}.{side}"
            places = cut_places(weight) if cut is axis_cut else range(whole[side][axis])
            pieces += cut_pieces(key, whole[side], axis=axis, places=places, at=(number,))
        replica = _expert_replica(module, is_cut=cut is axis_cut)
        yield Held(
            name=f"{adapter.name}.{side}", parameter=tensor, pieces=tuple(pieces), replica=replica
        )


def _is_of(named: NamedTensor, module: Experts, linear: str) -> bool:
    """It is that linear's weight of one of these experts."""
    if EXPERTS not in named.name or not named.name.endswith(f".{linear}.weight"):
        return False
    return any(
        named.tensor is cast("Any", expert).get_submodule(linear).weight
        for expert in module.local_experts
    )


def _replica(*, is_cut: bool) -> tuple[int, int, int]:
    tp = 0 if is_cut else parallel_state.get_tensor_model_parallel_rank()
    return (0, tp, parallel_state.get_data_parallel_rank(with_context_parallel=True))


def _expert_replica(module: Experts, *, is_cut: bool) -> tuple[int, int, int]:
    etp = 0 if is_cut else module.tp_group.rank()
    return (0, etp, parallel_state.get_expert_data_parallel_rank())
