"""What the native engine does not run, by name."""

from llm_infer.arch import Arch
from llm_infer.model.sharding import reason_against_sharding


def reason_against(arch: Arch, *, ranks: int = 1) -> str | None:
    """Why the decoder cannot run a model on so many ranks; None when it can."""
    if arch.mla is not None and arch.mla.indexer is not None:
        return "mla.indexer chooses keys (sparse attention)"
    return reason_against_sharding(arch, ranks)
