"""What the native engine does not run, by name."""

from llm_infer.arch import Arch

_MIXERS = frozenset({"attention", "mla", "none"})


def reason_against(arch: Arch) -> str | None:
    """Why the decoder cannot run a model; None when it can."""
    for number, run in enumerate(arch.each_layer()):
        if run.mixer not in _MIXERS:
            return f"layer {number} mixes tokens by {run.mixer}"
    if arch.mla is not None and arch.mla.indexer is not None:
        return "mla.indexer chooses keys (sparse attention)"
    return None
