"""Rules of expert parallelism."""

from __future__ import annotations

from collections.abc import Iterator

from llm_train.arch import Arch
from llm_train.check.multiple import multiple
from llm_train.config import RunConfig


def experts(config: RunConfig, arch: Arch, world_size: int) -> Iterator[str]:
    """Experts divide, and only models that have some are split by them."""
    ep, etp, pp = config.parallel.ep, config.parallel.etp, config.parallel.pp
    if arch.moe is None:
        for name, size in (("ep", ep), ("etp", etp)):
            if size > 1:
                yield f"parallel: {name}({size}) needs a model with experts; this one has none"
        return
    yield from multiple("parallel: moe experts", arch.moe.experts, "ep", ep)
    yield from multiple("parallel: expert ffn_hidden_size", arch.moe.ffn_hidden_size, "etp", etp)
    if world_size % (ep * etp * pp):
        yield (
            f"parallel: ep({ep}) * etp({etp}) * pp({pp}) = {ep * etp * pp} does not divide world "
            f"size {world_size}"
        )
