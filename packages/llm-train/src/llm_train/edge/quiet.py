"""Remarks of torch and megatron-core that say nothing to our users, silenced by name."""

import logging
import warnings

# Each is the expected state here: no Transformer Engine, no Apex, no CUDA toolkit.
_WARNINGS = (
    ".*Transformer Engine and Apex are not installed.*",
    "Apex is not installed.*",
    "full scope is deprecated.*",
    "`load_state_dict` is deprecated.*",
    r"The \.grad attribute of a Tensor that is not a leaf.*",
)
_LOGGERS = (
    "megatron.core.dist_checkpointing",  # tells of every file it touches
    "megatron.core.tensor_parallel.random",  # on a CPU one generator is host's and device's
    "megatron.core.transformer.transformer_layer",  # does not know our feed-forward
    "torch.utils.cpp_extension",
)


def quiet_libraries() -> None:
    """Call it before megatron-core is imported."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
