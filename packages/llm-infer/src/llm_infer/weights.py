"""Weight sources, resolved through the entry point `llm_infer.weights`."""

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from llm_infer.errors import InferError

if TYPE_CHECKING:
    import torch

GROUP = "llm_infer.weights"
Quantization = Literal["int8"]
"""How large weights are kept, other than as numbers of the model's type."""


class WeightSource(Protocol):
    """Weights of one model under megatron-core's names, whatever format they lie in.

    Names carry global layer numbers: `decoder.layers.{layer}.self_attention.linear_qkv.weight`.
    """

    @property
    def arch(self) -> Mapping[str, object]:
        """The arch.json document of the weights."""
        ...

    def names(self) -> Sequence[str]:
        """Every tensor that can be read."""
        ...

    def dtype(self, name: str) -> "torch.dtype":
        """Stored number type."""
        ...

    def read(
        self, name: str, shard: tuple[int, int] = (0, 1), *, padded_vocab_size: int | None = None
    ) -> "torch.Tensor":
        """The piece that tensor-parallel rank `shard[0]` of `shard[1]` holds, as a new tensor."""
        ...

    def companions(self) -> Sequence[Path]:
        """Files that belong with the weights: tokenizer, config.json and the like."""
        ...

    def close(self) -> None:
        """Close files."""
        ...


class OpenWeights(Protocol):
    """What the entry point names. It raises ValueError with the reason when it must refuse."""

    def __call__(self, path: Path, *, adapter: Path | None = None) -> WeightSource:
        """Open the weights under `path`, with a LoRA adapter merged in when one is given."""
        ...


def provider() -> OpenWeights | None:
    """The one installed provider, None without any; several are an error."""
    providers = list(entry_points(group=GROUP))
    if len(providers) > 1:
        names = ", ".join(sorted(one.name for one in providers))
        raise InferError(f"{GROUP!r} has several providers: {names}; uninstall all but one")
    return providers[0].load() if providers else None


def required_provider(path: Path) -> OpenWeights:
    """The provider, or an error that says how to get one."""
    found = provider()
    if found is None:
        raise InferError(
            f"{path}: the native engine reads weights through a provider of {GROUP!r}, and none "
            "is installed; pip install llm-ckpt, or use --engine transformers"
        )
    return found
