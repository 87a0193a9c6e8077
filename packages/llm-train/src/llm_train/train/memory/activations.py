"""Activations that wait for backward in host memory.

What a part of a layer saves for backward is copied away while the next part computes, and brought
back, one part ahead of its use, while backward computes the parts behind it. Whole storages travel,
so that several views of one tensor are one copy and come back with their strides.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from megatron.core.transformer.identity_op import IdentityOp

from llm_train.config import OffloadModule
from llm_train.model.build import Model

# Copies of less are not worth their launch.
SMALLEST_BYTES = 1024

# Where a part lies in a layer.
PATHS: Mapping[OffloadModule, str] = MappingProxyType(
    {
        OffloadModule.INPUT_LAYERNORM: "input_layernorm",
        OffloadModule.SELF_ATTENTION: "self_attention",
        OffloadModule.CORE_ATTENTION: "self_attention.core_attention",
        OffloadModule.PRE_MLP_LAYERNORM: "pre_mlp_layernorm",
        OffloadModule.MLP: "mlp",
    }
)


def offload_activations(
    chunks: Sequence[Model], parts: Sequence[OffloadModule], *, host: torch.device
) -> None:
    """Let these parts of every layer keep what they save for backward on `host`."""
    for chunk in chunks:
        modules = [module for layer in chunk.decoder.layers for module in _modules(layer, parts)]
        if modules:
            lane = _Lane(host=host, copies=torch.cuda.Stream())
            for order, module in enumerate(modules):
                module.forward = _offloaded(module, lane, order)


def _modules(layer: torch.nn.Module, parts: Sequence[OffloadModule]) -> Iterator[torch.nn.Module]:
    """The parts of a layer in the order in which they are called."""
    for part, path in PATHS.items():
        if part in parts:
            module = layer.get_submodule(path)
            if not isinstance(module, IdentityOp):
                yield module


@dataclass(slots=True, kw_only=True, weakref_slot=True)
class _Waiting:
    """Bytes of one storage on the host; once fetched on the device too, until its views are."""

    host: torch.Tensor
    device: torch.device
    views: int = 0
    fetched: torch.Tensor | None = None


@dataclass(slots=True, kw_only=True, weakref_slot=True)
class _Call:
    """What one call of a part saved; `before` is the part called before it, for the same batch."""

    lane: "_Lane"
    order: int
    before: "Callable[[], _Call | None]"
    waiting: dict[int, _Waiting] = field(default_factory=dict[int, _Waiting])
    ready: Any = None

    def fetch(self) -> None:
        """Start to bring everything back, unless that has been done."""
        if self.ready is not None:
            return
        with torch.cuda.stream(self.lane.copies):
            for one in self.waiting.values():
                one.fetched = torch.empty_like(one.host, device=one.device)
                one.fetched.copy_(one.host, non_blocking=True)
            self.ready = torch.cuda.Event()
            self.ready.record(self.lane.copies)


@dataclass(slots=True, kw_only=True)
class _Lane:
    """The stream on which one chunk's activations travel, and the call that was made last."""

    host: torch.device
    copies: Any
    last: "Callable[[], _Call | None]" = lambda: None

    def call(self, order: int) -> _Call:
        """A call of the part that is `order`-th in the chunk."""
        last = self.last()
        # Weakly: what has been used up must not wait for its followers.
        before = self.last if last is not None and last.order < order else lambda: None
        call = _Call(lane=self, order=order, before=before)
        self.last = weakref.ref(call)
        return call

    def send(self, storage: torch.UntypedStorage) -> _Waiting:
        """Start to copy a storage to the host."""
        there = _bytes(storage)
        is_pinned = there.device.type != "cpu"
        host = torch.empty(len(there), dtype=torch.uint8, device=self.host, pin_memory=is_pinned)
        self.copies.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.copies):
            host.copy_(there, non_blocking=True)
        there.record_stream(self.copies)
        return _Waiting(host=host, device=there.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """One saved tensor: a view of a storage that waits."""

    call: _Call
    waiting: _Waiting
    dtype: torch.dtype
    offset: int
    size: torch.Size
    stride: tuple[int, ...]

    def back(self) -> torch.Tensor:
        """The tensor on its device; the part before it is started on its way."""
        self.call.fetch()
        torch.cuda.current_stream().wait_event(self.call.ready)
        before = self.call.before()
        if before is not None:
            before.fetch()
        found = self.waiting.fetched
        if found is None:  # asked for again
            found = self.waiting.host.to(self.waiting.device)
        found.record_stream(torch.cuda.current_stream())
        self.waiting.views -= 1
        if self.waiting.views == 0:
            self.waiting.fetched = None
        empty = torch.empty(0, dtype=self.dtype, device=found.device)
        return empty.set_(found.untyped_storage(), self.offset, self.size, self.stride)


def _offloaded(module: torch.nn.Module, lane: _Lane, order: int) -> Callable[..., Any]:
    forward = module.forward

    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        weights = {one.untyped_storage().data_ptr() for one in module.parameters()}
        this, alive = lane.call(order), list[torch.UntypedStorage]()

        def pack(tensor: torch.Tensor) -> torch.Tensor | _View:
            storage = tensor.untyped_storage()
            place = storage.data_ptr()
            if place in weights or storage.nbytes() < SMALLEST_BYTES:
                return tensor
            if place not in this.waiting:
                this.waiting[place] = lane.send(storage)
                # Or another tensor might take its place before this call ends.
                alive.append(storage)
            this.waiting[place].views += 1
            return _View(
                call=this,
                waiting=this.waiting[place],
                dtype=tensor.dtype,
                offset=int(tensor.storage_offset()),
                size=tensor.shape,
                stride=tensor.stride(),
            )

        def unpack(saved: torch.Tensor | _View) -> torch.Tensor:
            return saved.back() if isinstance(saved, _View) else saved

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return forward(*args, **kwargs)

    return call


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
