"""What a user chooses about how a model is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llm_infer.edge.device import DeviceName
from llm_infer.weights import Quantization

EngineName = Literal["auto", "native", "transformers"]
ENGINES: tuple[EngineName, ...] = ("auto", "native", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Everything but the folder."""

    engine: EngineName = "auto"
    device: DeviceName = "auto"
    dtype: str = "auto"
    kernels: str = "auto"
    """Operators of the native engine: see `operators.resolve`."""
    quantization: Quantization | None = None
    """How the native engine keeps large weights; None: as numbers of the model's type."""
    lora: Path | None = None
    """A LoRA adapter to merge into the weights."""
    rope_scaling: str | None = None
    """`KIND:FACTOR`, for a context longer than the trained one."""
    cuda_graphs: bool = True
    """Whether the native engine replays steps on CUDA, where the model allows it."""
    cache_tokens: int | None = None
    """Size of the native engine's cache; None fits it to the memory."""
    tp: int = 1
    """Tensor parallel: ranks that the native engine divides the model among."""

    @property
    def native_only(self) -> list[str]:
        """Names of the options given that only the native engine has."""
        given = {
            "--kernels": self.kernels != "auto",
            "--quantization": self.quantization is not None,
            "--lora": self.lora is not None,
            "--rope-scaling": self.rope_scaling is not None,
            "--no-cuda-graphs": not self.cuda_graphs,
            "--cache-tokens": self.cache_tokens is not None,
            "--tp": self.tp != 1,
        }
        return [name for name, is_given in given.items() if is_given]
