"""Parameters of one part of a model by name: read, moved, and made into layers."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_infer.arch import Arch
from llm_infer.kernels import Kernels
from llm_infer.model.linear import Linear, MakeLinear
from llm_infer.weights import WeightSource


class Parameters:
    """Names below `prefix` of a weight source."""

    def __init__(
        self,
        source: WeightSource,
        arch: Arch,
        kernels: Kernels,
        *,
        make_linear: MakeLinear,
        device: torch.device,
        dtype: torch.dtype,
        prefix: str = "",
        names: frozenset[str] | None = None,
    ) -> None:
        self._source, self._arch, self._kernels = source, arch, kernels
        self._make_linear, self.device, self.dtype = make_linear, device, dtype
        self._prefix = prefix
        self._names = frozenset(source.names()) if names is None else names

    def under(self, prefix: str) -> "Parameters":
        """The parameters whose names go on with `prefix`."""
        return Parameters(
            self._source,
            self._arch,
            self._kernels,
            make_linear=self._make_linear,
            device=self.device,
            dtype=self.dtype,
            prefix=self._prefix + prefix,
            names=self._names,
        )

    def has(self, name: str) -> bool:
        """Whether there is such a parameter."""
        return self._prefix + name in self._names

    def tensor(self, name: str) -> Tensor:
        """A parameter, on the device and in the model's dtype."""
        return self._source.read(self._prefix + name).to(self.device, self.dtype)

    def in_float32(self, name: str) -> Tensor:
        """A parameter that keeps its precision whatever the model's dtype."""
        return self._source.read(self._prefix + name).to(self.device, torch.float32)

    def linear(self, name: str, *, change: Callable[[Tensor], Tensor] | None = None) -> Linear:
        """A linear layer with its bias where there is one; `change` is made to its weight."""
        weight = self.tensor(f"{name}.weight")
        bias = self.tensor(f"{name}.bias") if self.has(f"{name}.bias") else None
        return self._make_linear(weight if change is None else change(weight), bias)

    def linear_of(self, weight: Tensor) -> Linear:
        """A linear layer without bias, of a weight that was read."""
        return self._make_linear(weight, None)

    def norm(self, name: str) -> Callable[[Tensor], Tensor]:
        """The model's norm under that name."""
        facts, weight = self._arch.norm, self.tensor(f"{name}.weight")
        if facts.kind == "rms":
            offset = 1.0 if facts.zero_centered else 0.0
            return self.rms_norm(weight, eps=facts.eps, offset=offset)
        scale = weight + 1.0 if facts.zero_centered else weight
        bias = self.tensor(f"{name}.bias") if self.has(f"{name}.bias") else None
        return lambda x: F.layer_norm(x, (x.shape[-1],), scale, bias, facts.eps)

    def rms_norm(
        self, weight: Tensor, *, eps: float, offset: float = 0.0
    ) -> Callable[[Tensor], Tensor]:
        """An RMS norm with a weight that was read."""
        kernel = self._kernels.rms_norm
        return lambda x: kernel(x, weight, eps=eps, offset=offset)
