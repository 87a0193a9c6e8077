"""Rules of context parallelism and of rows that hold several documents."""

from __future__ import annotations

from collections.abc import Iterator

from llm_train.arch import Arch
from llm_train.check.multiple import multiple
from llm_train.config import ContextParallel, RunConfig

# Mixers that attend; the others carry a state from token to token.
_ATTENTION_MIXERS = frozenset({"attention", "mla", "none"})


def context(config: RunConfig, arch: Arch) -> Iterator[str]:
    """The sequence and the heads divide, and every layer can be cut along the sequence."""
    if config.parallel.cp > 1:
        yield from _sequence(config)
        yield from _heads(config, arch)
        yield from _whole_rows_only(f"parallel: cp({config.parallel.cp})", arch)
    if config.data.reset_documents:
        yield from _whole_rows_only("data: reset_documents", arch)


def _sequence(config: RunConfig) -> Iterator[str]:
    cp, tp = config.parallel.cp, config.parallel.tp
    divisor, name = 2 * cp, f"2 * cp({cp})"
    if config.parallel.sequence_parallel and tp > 1:
        divisor, name = divisor * tp, f"{name} * tp({tp})"
    length = config.train.seq_length
    if length % divisor:
        yield (
            f"train: seq_length({length}) is not a multiple of {name} = {divisor}: each rank "
            "holds an early and a late chunk of every sequence"
        )


def _heads(config: RunConfig, arch: Arch) -> Iterator[str]:
    parallel = config.parallel
    degree, tp, cp = parallel.ulysses_degree, parallel.tp, parallel.cp
    if parallel.cp_kind is ContextParallel.HYBRID:
        yield from multiple("parallel: cp", cp, "cp_ulysses", degree)
        if degree in (1, cp):
            kind = "ring" if degree == 1 else "ulysses"
            yield (
                f"parallel: cp_kind=hybrid needs 1 < cp_ulysses < cp, found cp_ulysses({degree}), "
                f"cp({cp}): that is cp_kind={kind}"
            )
    found = arch.attention or arch.mla
    if found is not None and found.heads % (tp * degree):
        yield (
            f"parallel: attention heads({found.heads}) is not a multiple of tp({tp}) * ulysses "
            f"degree({degree}) = {tp * degree}"
        )


def _whole_rows_only(who: str, arch: Arch) -> Iterator[str]:
    for mixer in sorted({run.mixer for run in arch.layers} - _ATTENTION_MIXERS):
        yield (
            f"{who} cannot be used with {mixer} layers: they carry a state from token to token, "
            "which nothing hands over or resets"
        )
