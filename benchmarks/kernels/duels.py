"""Operators that both llm-kernels-npu and liger-kernel have: the same tensors, a call of each."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from llm_kernels_npu.select import load

EPS = 1e-6
DTYPE = torch.bfloat16
Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Size:
    """`rows` of `width` features (hidden or vocabulary); `inner` is an output layer's depth."""

    rows: int
    width: int
    inner: int = 4096

    def __str__(self) -> str:
        return f"{self.rows}x{self.width}"


@dataclass(frozen=True)
class Duel:
    """One operator: its leaves, and both sides' call of them."""

    operator: str
    make: Callable[[Size, str], list[Tensor]]
    ours: Callable[..., Outputs]
    peer: Callable[..., Outputs]
    """Takes liger_kernel.transformers.functional, then the leaves."""
    for_peer: Callable[[Sequence[Tensor]], list[Tensor]] = list
    """The same leaves in the layout that the peer takes."""
    passes: int | None = None
    """Times that as much as the first leaf must be read or written; None: bound by arithmetic."""


def leaf(*shape: int, device: str, scale: float = 1.0) -> Tensor:
    """Normal numbers that take a gradient."""
    return (torch.randn(*shape, device=device, dtype=DTYPE) * scale).requires_grad_()


def backend(operator: str) -> Callable[..., object]:
    """Our Triton backend, without the check of its limits."""
    return load(operator, "triton")[0]


def _rows(size: Size, device: str, *, matrices: int = 1, vectors: int = 1) -> list[Tensor]:
    wide = [leaf(size.rows, size.width, device=device) for _ in range(matrices)]
    return wide + [leaf(size.width, device=device) for _ in range(vectors)]


def _gate_and_up(size: Size, device: str) -> list[Tensor]:
    return [leaf(size.rows, 2 * size.width, device=device)]


def _apart(leaves: Sequence[Tensor]) -> list[Tensor]:
    """Gate and up as two tensors: the peer's layout."""
    return [half.detach().contiguous().requires_grad_() for half in leaves[0].chunk(2, dim=-1)]


def _heads(size: Size, device: str) -> list[Tensor]:
    """Query and key [1, T, H, 128], four query heads a key head, and the tables of angles."""
    heads = size.width // 128
    q = leaf(1, size.rows, heads, 128, device=device)
    k = leaf(1, size.rows, max(1, heads // 4), 128, device=device)
    angles = torch.rand(1, size.rows, 1, 64, device=device).repeat(1, 1, 1, 2)
    return [q, k, angles.cos(), angles.sin()]


def _logits(size: Size, device: str) -> list[Tensor]:
    targets = torch.randint(size.width, (size.rows,), device=device)
    return [leaf(size.rows, size.width, device=device), targets]


def _output_layer(size: Size, device: str) -> list[Tensor]:
    logits, targets = size.width, torch.randint(size.width, (size.rows,), device=device)
    weight = leaf(logits, size.inner, device=device, scale=1 / math.sqrt(size.inner))
    return [leaf(size.rows, size.inner, device=device), weight, targets]


def _peer_rope(liger: ModuleType, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Outputs:
    # As transformers calls it: heads before tokens, by strides alone.
    tables = (cos.squeeze(2), sin.squeeze(2))
    turned = liger.liger_rope(q.transpose(1, 2), k.transpose(1, 2), *tables)
    return tuple(x.transpose(1, 2) for x in turned)


def _our_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Outputs:
    rope = backend("rope")
    return rope(q, cos, sin), rope(k, cos, sin)


DUELS = (
    Duel(
        "rms_norm",
        _rows,
        lambda x, w: (backend("rms_norm")(x, w, eps=EPS),),
        # By default it writes its gradient over the gradient it is given.
        lambda liger, x, w: (liger.liger_rms_norm(x, w, EPS, in_place=False),),
        passes=5,
    ),
    Duel(
        "add_rms_norm",
        lambda size, device: _rows(size, device, matrices=2),
        lambda x, r, w: backend("add_rms_norm")(x, r, w, eps=EPS),
        lambda liger, x, r, w: liger.liger_fused_add_rms_norm(x, r, w, EPS, in_place=False),
        passes=8,
    ),
    Duel(
        "layer_norm",
        lambda size, device: _rows(size, device, vectors=2),
        lambda x, w, b: (backend("layer_norm")(x, w, b, eps=EPS),),
        lambda liger, x, w, b: (liger.liger_layer_norm(x, w, b, EPS),),
        passes=5,
    ),
    Duel(
        "swiglu",
        _gate_and_up,
        lambda x: (backend("swiglu")(x),),
        lambda liger, gate, up: (liger.liger_swiglu(gate, up),),
        for_peer=_apart,
        passes=4,
    ),
    Duel(
        "geglu",
        _gate_and_up,
        lambda x: (backend("geglu")(x, approximate="tanh"),),
        lambda liger, gate, up: (liger.liger_geglu(gate, up),),
        for_peer=_apart,
        passes=4,
    ),
    Duel("rope", _heads, _our_rope, _peer_rope, passes=5),
)
"""On rows of hidden features; rope's key adds a quarter to its query's four passes."""

LOSSES = (
    Duel(
        "cross_entropy",
        _logits,
        lambda x, targets: (backend("cross_entropy")(x, targets).sum(),),
        lambda liger, x, targets: (liger.liger_cross_entropy(x, targets, reduction="sum"),),
        passes=3,
    ),
    Duel(
        "linear_cross_entropy",
        _output_layer,
        lambda x, w, targets: (backend("linear_cross_entropy")(x, w, targets, reduction="sum"),),
        lambda liger, x, w, targets: (
            liger.liger_fused_linear_cross_entropy(x, w, targets, reduction="sum"),
        ),
    ),
)
"""On rows of a vocabulary."""


def plain_linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Outputs:
    """All logits at once, by PyTorch alone."""
    logits = torch.nn.functional.linear(x, weight)
    return (torch.nn.functional.cross_entropy(logits, targets, reduction="sum"),)
