"""What of a model a rank of a tensor-parallel group computes: whole query groups and heads, and a
part of every feed-forward and every expert.

With more ranks than query groups several ranks have the keys and values of one group, and each some
of its queries, as in megatron-core.
"""

from collections.abc import Iterator

from llm_infer.arch import Arch, Attention


def reason_against_sharding(arch: Arch, size: int) -> str | None:
    """Why a model cannot be divided among `size` ranks; None when it can."""
    for name, extent in _divided(arch, size):
        if extent % size:
            return f"{name}({extent}) % tp({size}) = {extent % size}, want 0"
    groups = arch.attention.query_groups if arch.attention is not None else size
    if groups < size and size % groups:
        return f"tp({size}) % attention.query_groups({groups}) = {size % groups}, want 0"
    return None


def ranks_of_a_group(attention: Attention, size: int) -> int:
    """How many of `size` ranks have the keys and values of one query group."""
    return max(1, size // attention.query_groups)


def share_of(arch: Arch, size: int) -> Arch:
    """The facts of a rank's layers; everything else as the whole model has it."""
    if size == 1:
        return arch
    changed = dict[str, object]()
    if (attention := arch.attention) is not None:
        changed["attention"] = attention.model_copy(
            update={
                "heads": attention.heads // size,
                "query_groups": max(1, attention.query_groups // size),
            }
        )
    if arch.mla is not None:
        changed["mla"] = arch.mla.model_copy(update={"heads": arch.mla.heads // size})
    if (gdn := arch.gdn) is not None:
        heads = {"key_heads": gdn.key_heads // size, "value_heads": gdn.value_heads // size}
        changed["gdn"] = gdn.model_copy(update=heads)
    if (mamba := arch.mamba2) is not None:
        heads = {"heads": mamba.heads // size, "groups": mamba.groups // size}
        changed["mamba2"] = mamba.model_copy(update=heads)
    return arch.model_copy(update=changed)


def _divided(arch: Arch, size: int) -> Iterator[tuple[str, int]]:
    """Names and extents of what must divide."""
    if arch.attention is not None:
        if arch.attention.query_groups < size:
            yield "attention.heads", arch.attention.heads
        else:
            yield "attention.query_groups", arch.attention.query_groups
    if arch.mla is not None:
        yield "mla.heads", arch.mla.heads
    if arch.gdn is not None:
        yield "gdn.key_heads", arch.gdn.key_heads
    if arch.mamba2 is not None:
        yield "mamba2.groups", arch.mamba2.groups
    if arch.mlp is not None:
        yield "mlp.ffn_hidden_size", arch.mlp.ffn_hidden_size
    if arch.moe is not None:
        yield "moe.ffn_hidden_size", arch.moe.ffn_hidden_size
        if arch.moe.shared is not None:
            yield "moe.shared.ffn_hidden_size", arch.moe.shared.ffn_hidden_size
