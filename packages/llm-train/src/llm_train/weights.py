"""Weight sources, resolved through the entry point `llm_train.weights`."""

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path

from llm_train.arch import Arch, parse
from llm_train.interfaces import AdapterSource, ExportAdapter, ExportWeights, WeightSource

GROUP = "llm_train.weights"
EXPORT_GROUP = "llm_train.export"
ADAPTER_GROUP = "llm_train.adapters"
ADAPTER_SOURCE_GROUP = "llm_train.adapter_sources"


class ProviderError(RuntimeError):
    """No installed package provides what was asked for."""


def open_source(path: Path) -> WeightSource:
    """The weights under `path`: a Hugging Face folder or a Megatron v1 or v2 checkpoint."""
    providers = list(entry_points(group=GROUP))
    if not providers:
        raise ProviderError(
            f"model.load={path}: reading weights needs a provider of {GROUP!r} and none is "
            "installed; pip install llm-ckpt, or set model.arch for a random initialisation"
        )
    if len(providers) > 1:
        names = ", ".join(sorted(provider.name for provider in providers))
        raise ProviderError(f"{GROUP!r} has several providers: {names}; uninstall all but one")
    return providers[0].load()(path)


def hf_exporter() -> ExportWeights:
    """What writes Hugging Face folders during a run."""
    providers = list(entry_points(group=EXPORT_GROUP))
    if not providers:
        raise ProviderError(
            f"save.hf=true: it needs a provider of {EXPORT_GROUP!r} and none is installed; "
            "pip install llm-ckpt, or set save.hf=false"
        )
    return providers[0].load()


def adapter_exporter() -> ExportAdapter:
    """What writes PEFT folders during a run."""
    providers = list(entry_points(group=ADAPTER_GROUP))
    if not providers:
        raise ProviderError(
            f"lora: writing adapters needs a provider of {ADAPTER_GROUP!r} and none is installed; "
            "pip install llm-ckpt"
        )
    return providers[0].load()


def open_adapter(folder: Path, *, arch: Mapping[str, object]) -> AdapterSource:
    """The adapters of a PEFT folder, for the model of an arch.json document."""
    providers = list(entry_points(group=ADAPTER_SOURCE_GROUP))
    if not providers:
        raise ProviderError(
            f"lora.load={folder}: reading it needs a provider of {ADAPTER_SOURCE_GROUP!r} and none "
            "is installed; pip install llm-ckpt"
        )
    return providers[0].load()(folder, arch=arch)


def arch_of(source: WeightSource, *, where: Path) -> Arch:
    """The checked architecture of a weight source."""
    return parse(source.arch, where=f"{where} (arch.json)")
