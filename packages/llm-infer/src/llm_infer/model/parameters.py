"""Parameters of one part of a model by name: read, moved, and made into layers.

With several ranks each reads its piece of what is divided, as megatron-core divides it: rows of
column-parallel layers, columns of row-parallel ones, a run of the vocabulary's rows.

Quantization is of the large weights: linear layers, the vocabulary's table, projections of a
latent. Routers, gates, norms, biases and learned positions keep their numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_infer.arch import Arch
from llm_infer.compiled.kernels import CompiledKernels
from llm_infer.kernels import Kernels, TorchKernels
from llm_infer.model.group import ALONE, Alone, Group
from llm_infer.model.int8 import Int8Linear, Int8Matrices, Int8Table
from llm_infer.model.linear import Linear, PackedLinear, PlainLinear, TiledLinear, can_pack
from llm_infer.model.sharding import ranks_of_a_group
from llm_infer.model.stored import Matrices, PlainMatrices, PlainTable, Table
from llm_infer.model.swiglu import PackedSwiglu
from llm_infer.weights import Quantization, WeightSource

_MakeLinear = Callable[[Tensor, Tensor | None], Linear]


def keeps_stored(kernels: Kernels, dtype: torch.dtype) -> bool:
    """Whether large weights stay in the number type they are stored in."""
    return isinstance(kernels, CompiledKernels) and dtype == torch.float32


def _maker(device: torch.device, dtype: torch.dtype, kernels: Kernels) -> _MakeLinear:
    """The kind of linear layer for a device and the other operators there."""
    if isinstance(kernels, CompiledKernels) and dtype == torch.float32:
        return kernels.linear
    if device.type != "cpu":
        return PlainLinear
    return PackedLinear if can_pack(dtype) else TiledLinear


@dataclass(frozen=True, slots=True)
class _Piece(Alone):
    """Which piece of weights is read, by one who computes nothing with others."""


class Parameters:
    """Names below `prefix` of a weight source."""

    def __init__(
        self,
        source: WeightSource,
        arch: Arch,
        kernels: Kernels,
        *,
        device: torch.device,
        dtype: torch.dtype,
        quantization: Quantization | None = None,
        group: Group = ALONE,
        prefix: str = "",
        names: frozenset[str] | None = None,
    ) -> None:
        self._source, self._arch, self._kernels = source, arch, kernels
        self.device, self.dtype = device, dtype
        self._make_linear = _maker(device, dtype, kernels)
        self._quantization: Quantization | None = quantization
        self.group, self._prefix = group, prefix
        self._names = frozenset(source.names()) if names is None else names

    def under(self, prefix: str) -> "Parameters":
        """The parameters whose names go on with `prefix`."""
        return self._changed(prefix=self._prefix + prefix, group=self.group)

    @property
    def ranks_of_a_group(self) -> int:
        """How many ranks have the keys and values of one query group of the model."""
        assert self._arch.attention is not None, "arch.json: no query groups"
        return ranks_of_a_group(self._arch.attention, self.group.size)

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
        return self._linear(f"{name}.weight", self._bias(name), change)

    def shared_qkv(self, name: str, *, queries: int, head_dim: int, ranks: int) -> Linear:
        """The layer that makes a query group's rows, of which `ranks` ranks each have a part.

        All have its key and value, each has `queries` of its queries and of their gates.
        """
        whole = self._of_group(_Piece(self.group.rank // ranks, self.group.size // ranks))
        first = self.group.rank % ranks * queries

        def own(rows: Tensor) -> Tensor:
            heads = rows.view(-1, head_dim, *rows.shape[1:])
            # Queries, and their gates where there are any; a key and a value.
            several = heads[:-2].view(-1, ranks * queries, *heads.shape[1:])
            kept = several[:, first : first + queries].flatten(0, 1)
            return torch.cat([kept, heads[-2:]]).flatten(0, 1)

        bias = own(whole.tensor(f"{name}.bias")) if self.has(f"{name}.bias") else None
        return whole._linear(f"{name}.weight", bias, own)

    def swiglu(self, name: str) -> Callable[[Tensor], Tensor]:
        """A linear layer that gives a gate and what it gates, with `Kernels.swiglu` behind it."""
        make = self._swiglu_maker()
        if make is not None:
            return self._made(make, f"{name}.weight", self._bias(name))
        linear, swiglu = self.linear(name), self._kernels.swiglu
        return lambda x: swiglu(linear(x))

    def _swiglu_maker(self) -> "_MakeLinear | None":
        """What makes both in one; None where nothing does."""
        kernels, is_int8 = self._kernels, self._quantization == "int8"
        if self.dtype != torch.float32:
            return None
        if isinstance(kernels, CompiledKernels):
            return kernels.int8_swiglu_linear if is_int8 else kernels.swiglu_linear
        is_packed = self._make_linear is PackedLinear and not is_int8
        return PackedSwiglu if is_packed and isinstance(kernels, TorchKernels) else None

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
        return self._make_linear(self.tensor(f"{name}.weight"), self._bias(name))

    def full_linear_of(self, weight: Tensor) -> Linear:
        """The same without bias, of a weight that was read."""
        return self._make_linear(weight, None)

    def table(self, name: str) -> Table:
        """Rows to look up."""
        if self._quantization == "int8":
            return Int8Table(self._read(name), self.dtype)
        rows = self._read(name) if self._keeps_stored else self.tensor(name)
        return PlainTable(rows, self.dtype)

    def matrices(self, name: str) -> Matrices:
        """A weight for products of its own."""
        if self._quantization == "int8":
            return Int8Matrices(self._read(name), self.dtype)
        return PlainMatrices(self.tensor(name))

    def norm(self, name: str) -> Callable[[Tensor], Tensor]:
        """The model's norm under that name, of channels that every rank has."""
        facts, weight = self._arch.norm, self.whole(f"{name}.weight")
        if facts.kind == "rms":
            return self._rms_norm_of(weight)
        scale = weight + 1.0 if facts.zero_centered else weight
        bias = self.whole(f"{name}.bias") if self.has(f"{name}.bias") else None
        return lambda x: F.layer_norm(x, (x.shape[-1],), scale, bias, facts.eps)

    def stacked_norm(self, names: Sequence[str]) -> Callable[[Tensor], Tensor] | None:
        """The model's norms of [..., len(names), channels], a name's for each; None: not as one."""
        is_torch = isinstance(self._kernels, TorchKernels) and self.device.type == "cpu"
        if not is_torch or self._arch.norm.kind != "rms":
            return None
        stacked = torch.stack([self.whole(f"{name}.weight") for name in names])
        return self._rms_norm_of(stacked) if stacked.dim() == 2 else None

    def rms_gain(self, name: str) -> Tensor | None:
        """What the model's RMS norm under that name multiplies by; None where it is another."""
        facts = self._arch.norm
        if facts.kind != "rms":
            return None
        weight = self.whole(f"{name}.weight").float()
        return weight + 1.0 if facts.zero_centered else weight

    def norm_across(self, name: str, *, ranks: int = 1) -> Callable[[Tensor], Tensor]:
        """The model's norm of channels that are divided, each piece on `ranks` ranks."""
        norm, group = self.norm(name), self.group
        if group.size == 1:
            return norm

        def across(x: Tensor) -> Tensor:
            pieces = group.joined(x).chunk(group.size, dim=-1)[::ranks]
            return norm(torch.cat(pieces, dim=-1)).chunk(len(pieces), dim=-1)[group.rank // ranks]

        return across

    def rms_norm(
        self, weight: Tensor, *, eps: float, offset: float = 0.0
    ) -> Callable[[Tensor], Tensor]:
        """An RMS norm with a weight that was read."""
        kernel = self._kernels.rms_norm
        return lambda x: kernel(x, weight, eps=eps, offset=offset)

    def _rms_norm_of(self, weight: Tensor) -> Callable[[Tensor], Tensor]:
        facts = self._arch.norm
        return self.rms_norm(weight, eps=facts.eps, offset=1.0 if facts.zero_centered else 0.0)

    def _of_group(self, group: Group) -> "Parameters":
        return self._changed(prefix=self._prefix, group=group)

    def _changed(self, *, prefix: str, group: Group) -> "Parameters":
        return Parameters(
            self._source,
            self._arch,
            self._kernels,
            device=self.device,
            dtype=self.dtype,
            quantization=self._quantization,
            group=group,
            prefix=prefix,
            names=self._names,
        )

    def _linear(
        self, name: str, bias: Tensor | None, change: Callable[[Tensor], Tensor] | None = None
    ) -> Linear:
        if self._quantization != "int8":
            make = self._make_linear
        elif isinstance(self._kernels, CompiledKernels) and self._keeps_stored:
            make = self._kernels.int8_linear
        else:
            make = Int8Linear
        return self._made(make, name, bias, change)

    def _made(
        self,
        make: _MakeLinear,
        name: str,
        bias: Tensor | None,
        change: Callable[[Tensor], Tensor] | None = None,
    ) -> Linear:
        # Quantized from the numbers as they are stored: the model's dtype may have fewer digits.
        is_stored = self._keeps_stored or self._quantization == "int8"
        weight = self._read(name) if is_stored else self.tensor(name)
        if change is not None:
            weight = change(weight.float() if is_stored else weight)
        return make(weight, bias)

    @property
    def _keeps_stored(self) -> bool:
        return keeps_stored(self._kernels, self.dtype)

    def _bias(self, name: str) -> Tensor | None:
        return self.tensor(f"{name}.bias") if self.has(f"{name}.bias") else None

    def _read(self, name: str) -> Tensor:
        size = self.group.size
        if size == 1:
            return self._source.read(self._prefix + name)
        padded = -(-self._arch.vocab_size // size) * size
        shard = (self.group.rank, size)
        return self._source.read(self._prefix + name, shard, padded_vocab_size=padded)
