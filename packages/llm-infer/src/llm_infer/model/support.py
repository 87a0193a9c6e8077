"""What the native engine does not run, by name."""

from llm_infer.arch import Arch
from llm_infer.errors import InferError
from llm_infer.model.sharding import reason_against_sharding


def reason_against(arch: Arch, *, ranks: int = 1) -> str | None:
    """Why the decoder cannot run a model on so many ranks; None when it can."""
    if arch.mla is not None and arch.mla.indexer is not None:
        for run in arch.layers:
            if run.mixer == "mla" and run.window is not None:
                return f"mla.indexer with a window of {run.window} tokens; want all keys before"
    return reason_against_sharding(arch, ranks)


def require_runnable(arch: Arch, *, ranks: int = 1) -> None:
    """Raise InferError for a model that the decoder cannot run on so many ranks."""
    if (reason := reason_against(arch, ranks=ranks)) is not None:
        raise InferError(f"the native engine cannot run this model: {reason}")
