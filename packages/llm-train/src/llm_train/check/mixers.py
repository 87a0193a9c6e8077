"""Rules of linear-attention and state-space mixers."""

from __future__ import annotations

from collections.abc import Iterator

from llm_train.arch import Arch
from llm_train.check.multiple import multiple
from llm_train.config import RunConfig


def mixers(config: RunConfig, arch: Arch) -> Iterator[str]:
    """Heads fall into their groups, and groups onto the tensor-parallel ranks."""
    tp = config.parallel.tp
    if arch.gdn is not None:
        keys, values = arch.gdn.key_heads, arch.gdn.value_heads
        yield from multiple("model: gdn value_heads", values, "key_heads", keys)
        yield from multiple("parallel: gdn key_heads", keys, "tp", tp)
    if arch.mamba2 is not None:
        heads, groups = arch.mamba2.heads, arch.mamba2.groups
        yield from multiple("model: mamba2 heads", heads, "groups", groups)
        yield from multiple("parallel: mamba2 groups", groups, "tp", tp)
