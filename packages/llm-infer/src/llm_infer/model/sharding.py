"""What of a model a rank of a tensor-parallel group computes: whole query groups and heads, and a
part of every feed-forward and every expert.
"""

from collections.abc import Iterator

from llm_infer.arch import Arch


def reason_against_sharding(arch: Arch, size: int) -> str | None:
    """Why a model cannot be divided among `size` ranks; None when it can."""
    for name, extent in _divided(arch):
        if extent % size:
            return f"{name}({extent}) % tp({size}) = {extent % size}, want 0"
    return None


def share_of(arch: Arch, size: int) -> Arch:
    """The facts of a rank's layers; everything else as the whole model has it."""
    if size == 1:
        return arch
    changed = dict[str, object]()
    if (attention := arch.attention) is not None:
        changed["attention"] = attention.model_copy(
            update={
                "heads": attention.heads // size,
                "query_groups": attention.query_groups // size,
            }
        )
    if arch.mla is not None:
        changed["mla"] = arch.mla.model_copy(update={"heads": arch.mla.heads // size})
    return arch.model_copy(update=changed)


def _divided(arch: Arch) -> Iterator[tuple[str, int]]:
    """Names and extents of what must divide."""
    if arch.attention is not None:
        yield "attention.query_groups", arch.attention.query_groups
    if arch.mla is not None:
        yield "mla.heads", arch.mla.heads
    if arch.mlp is not None:
        yield "mlp.ffn_hidden_size", arch.mlp.ffn_hidden_size
    if arch.moe is not None:
        yield "moe.ffn_hidden_size", arch.moe.ffn_hidden_size
        if arch.moe.shared is not None:
            yield "moe.shared.ffn_hidden_size", arch.moe.shared.ffn_hidden_size
