"""Parameters of one part of a model by name: read, moved, and made into layers.

With several ranks each reads its piece of what is divided, as megatron-core divides it: rows of
column-parallel layers, columns of row-parallel ones, a run of the vocabulary's rows.

Quantization is of the large weights: linear layers, the vocabulary's table, projections of a
latent. Routers, gates, norms, biases and learned positions keep their numbers.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_infer.arch import Arch
from llm_infer.kernels import Kernels
from llm_infer.model.group import ALONE, Group
from llm_infer.model.int8 import Int8Linear, Int8Matrices, Int8Table
from llm_infer.model.linear import Linear, MakeLinear
from llm_infer.model.stored import Matrices, PlainMatrices, PlainTable, Table
from llm_infer.weights import Quantization, WeightSource


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
        quantization: Quantization | None = None,
        group: Group = ALONE,
        prefix: str = "",
        names: frozenset[str] | None = None,
    ) -> None:
        self._source, self._arch, self._kernels = source, arch, kernels
        self._make_linear, self.device, self.dtype = make_linear, device, dtype
        self._quantization: Quantization | None = quantization
        self.group, self._prefix = group, prefix
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
            quantization=self._quantization,
            group=self.group,
            prefix=self._prefix + prefix,
            names=self._names,
        )

    def has(self, name: str) -> bool:
        """Whether there is such a parameter."""
        return self._prefix + name in self._names

    def tensor(self, name: str) -> Tensor:
        """This rank's piece of a parameter, on the device and in the model's dtype."""
        return self._read(name).to(self.device, self.dtype)

    def in_float32(self, name: str) -> Tensor:
        """The same of one that keeps its precision whatever the model's dtype."""
        return self._read(name).to(self.device, torch.float32)

    def whole(self, name: str) -> Tensor:
        """All of a parameter, on the device and in the model's dtype."""
        return self._source.read(self._prefix + name).to(self.device, self.dtype)

    def linear(self, name: str, *, change: Callable[[Tensor], Tensor] | None = None) -> Linear:
        """A linear layer with its bias where there is one; `change` is made to its weight."""
        bias = self.tensor(f"{name}.bias") if self.has(f"{name}.bias") else None
        return self._linear(f"{name}.weight", bias, change)

    def row_parallel(self, name: str, *, sums: bool = True) -> Linear:
        """A linear layer that each rank has some inputs of; what they give is summed.

        Without `sums` the caller sums. The bias is added by rank 0 alone.
        """
        has_bias = self.group.rank == 0 and self.has(f"{name}.bias")
        bias = self.tensor(f"{name}.bias") if has_bias else None
        partial = self._linear(f"{name}.weight", bias)
        if self.group.size == 1 or not sums:
            return partial
        return lambda x: self.group.summed(partial(x))

    def full_linear(self, name: str) -> Linear:
        """A linear layer that is not quantized, with its bias where there is one."""
        bias = self.tensor(f"{name}.bias") if self.has(f"{name}.bias") else None
        return self._make_linear(self.tensor(f"{name}.weight"), bias)

    def full_linear_of(self, weight: Tensor) -> Linear:
        """The same without bias, of a weight that was read."""
        return self._make_linear(weight, None)

    def table(self, name: str) -> Table:
        """Rows to look up."""
        if self._quantization == "int8":
            return Int8Table(self._read(name), self.dtype)
        return PlainTable(self.tensor(name))

    def matrices(self, name: str) -> Matrices:
        """A weight for products of its own."""
        if self._quantization == "int8":
            return Int8Matrices(self._read(name), self.dtype)
        return PlainMatrices(self.tensor(name))

    def norm(self, name: str) -> Callable[[Tensor], Tensor]:
        """The model's norm under that name, of channels that every rank has."""
        facts, weight = self._arch.norm, self.whole(f"{name}.weight")
        if facts.kind == "rms":
            offset = 1.0 if facts.zero_centered else 0.0
            return self.rms_norm(weight, eps=facts.eps, offset=offset)
        scale = weight + 1.0 if facts.zero_centered else weight
        bias = self.whole(f"{name}.bias") if self.has(f"{name}.bias") else None
        return lambda x: F.layer_norm(x, (x.shape[-1],), scale, bias, facts.eps)

    def norm_across(self, name: str) -> Callable[[Tensor], Tensor]:
        """The model's norm of channels that are divided among the ranks."""
        norm, group = self.norm(name), self.group
        if group.size == 1:
            return norm
        return lambda x: norm(group.joined(x)).chunk(group.size, dim=-1)[group.rank]

    def rms_norm(
        self, weight: Tensor, *, eps: float, offset: float = 0.0
    ) -> Callable[[Tensor], Tensor]:
        """An RMS norm with a weight that was read."""
        kernel = self._kernels.rms_norm
        return lambda x: kernel(x, weight, eps=eps, offset=offset)

    def _linear(
        self, name: str, bias: Tensor | None, change: Callable[[Tensor], Tensor] | None = None
    ) -> Linear:
        is_int8 = self._quantization == "int8"
        # Quantized from the numbers as they are stored: the model's dtype may have fewer digits.
        weight = self._read(name) if is_int8 else self.tensor(name)
        if change is not None:
            weight = change(weight)
        return Int8Linear(weight, bias) if is_int8 else self._make_linear(weight, bias)

    def _read(self, name: str) -> Tensor:
        size = self.group.size
        if size == 1:
            return self._source.read(self._prefix + name)
        padded = -(-self._arch.vocab_size // size) * size
        shard = (self.group.rank, size)
        return self._source.read(self._prefix + name, shard, padded_vocab_size=padded)
