"""The fused operators of a run, carried by the config that every module is given."""

from megatron.core.transformer.transformer_config import TransformerConfig

from llm_train.kernels import Kernels


def use_kernels(config: TransformerConfig, kernels: Kernels | None) -> None:
    """Let the modules built of `config` compute with `kernels`, None = with plain torch."""
    config.kernels = kernels  # pyright: ignore[reportAttributeAccessIssue]


def kernels_of(config: TransformerConfig) -> Kernels | None:
    """What `use_kernels` said."""
    return getattr(config, "kernels", None)
