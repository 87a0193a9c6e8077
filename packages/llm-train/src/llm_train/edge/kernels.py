"""Fused operators of another package, resolved through the entry points `llm_train.kernels`."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import cast

from llm_train.arch import Arch
from llm_train.config import RunConfig
from llm_train.kernels import Kernels, OpenKernels
from llm_train.weights import ProviderError

GROUP = "llm_train.kernels"


def open_kernels(config: RunConfig, arch: Arch, *, device: str) -> Kernels | None:
    """The operators that `kernels` names, for a model on `device`; None for plain torch.

    Raises ProviderError when no installed package has that name.
    """
    if config.kernels is None:
        return None
    provide = cast("OpenKernels", find_provider(config.kernels).load())
    return provide(device=device, features={"attention": attention_features(config, arch)})


def find_provider(name: str) -> EntryPoint:
    """The entry point of that name, not yet loaded; ProviderError says which there are."""
    providers = {point.name: point for point in entry_points(group=GROUP)}
    if name not in providers:
        found = ", ".join(sorted(providers)) or "none"
        raise ProviderError(
            f"kernels={name}: no installed package provides {GROUP!r} under that name (found: "
            f"{found}); pip install llm-kernels-npu, or set kernels=null for plain torch"
        )
    return providers[name]


def attention_features(config: RunConfig, arch: Arch) -> frozenset[str]:
    """What attention will be asked for beyond the ordinary."""
    wanted = {
        "window": any(layer.window is not None for layer in arch.layers),
        "sinks": arch.attention is not None and arch.attention.sinks,
        "documents": config.data.reset_documents,
    }
    return frozenset(name for name, is_wanted in wanted.items() if is_wanted)
