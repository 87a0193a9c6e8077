"""Rules of tensor parallelism."""

from __future__ import annotations

from collections.abc import Iterator

from llm_train.arch import Arch, Attention
from llm_train.check.multiple import multiple
from llm_train.config import RunConfig


def tensor(config: RunConfig, arch: Arch) -> Iterator[str]:
    """Every cut size divides."""
    tp = config.parallel.tp
    if tp == 1:
        return
    if arch.attention is not None:
        yield from _attention_heads(tp, arch.attention)
    if arch.mla is not None:
        yield from multiple("parallel: mla heads", arch.mla.heads, "tp", tp)
    if arch.mlp is not None:
        yield from multiple("parallel: mlp ffn_hidden_size", arch.mlp.ffn_hidden_size, "tp", tp)
    if arch.moe is not None and arch.moe.shared is not None:
        yield from multiple(
            "parallel: shared expert ffn_hidden_size", arch.moe.shared.ffn_hidden_size, "tp", tp
        )
    if config.parallel.sequence_parallel:
        # Sequence parallel cuts the sequence between the tp ranks.
        yield from multiple("train: seq_length", config.train.seq_length, "tp", tp)
    else:
        yield from _without_sequence_parallel(tp, arch)


def _attention_heads(tp: int, attention: Attention) -> Iterator[str]:
    heads, groups = attention.heads, attention.query_groups
    yield from multiple("parallel: attention heads", heads, "tp", tp)
    if groups % tp and tp % groups:
        yield (
            f"parallel: query_groups({groups}) is neither a multiple nor a divisor of tp({tp}) "
            f"(tp({tp}) % query_groups({groups}) = {tp % groups})"
        )


def _without_sequence_parallel(tp: int, arch: Arch) -> Iterator[str]:
    if arch.moe is not None:
        yield f"parallel: moe layers under tp({tp}) need sequence_parallel=true"
