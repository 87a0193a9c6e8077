"""Parity of a backend with its reference: outputs and gradients, uninitialised memory poisoned."""

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from llm_kernels_npu.case import Case
from llm_kernels_npu.select import load

Outputs = Tensor | tuple[Tensor, ...]

TOLERANCE: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
)
"""Largest difference allowed, as a part of the reference's largest value: some units in the
last place, for values that pass through several roundings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The largest difference of one tensor from the reference's."""

    tensor: str
    absolute: float
    relative: float
    """As a part of the reference's largest value; infinite when anything is not finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One case of one backend compared with the reference."""

    operator: str
    backend: str
    case: str
    dtype: torch.dtype
    differences: tuple[Difference, ...]

    @property
    def worst(self) -> Difference:
        """The tensor furthest from the reference."""
        return max(self.differences, key=lambda difference: difference.relative)

    @property
    def passed(self) -> bool:
        """Whether every tensor is within the dtype's tolerance."""
        return self.worst.relative <= TOLERANCE[self.dtype]


def compare(
    name: str,
    backend: str,
    case: Case,
    *,
    device: str,
    dtype: torch.dtype,
    run: Callable[..., Outputs] | None = None,
) -> Result | str:
    """Compare outputs and gradients; or the reason the backend's limits refuse the case.

    The reference gets the same rounded values in float32 on the CPU. `run` replaces the
    backend's function (for a kernel under development).
    """
    loaded, limit = load(name, backend)
    tensors = make(case, device=device, dtype=dtype)
    args, options = arguments(case, tensors)
    refusal = limit(*args, **options)
    if refusal is not None:
        return refusal
    exact = torch.float64 if dtype is torch.float64 else torch.float32
    plain = [_leaf(tensor.detach().cpu(), exact) for tensor in tensors]
    expected = _forward_backward(load(name, "reference")[0], plain, case)
    with poisoned():
        found = _forward_backward(run or loaded, tensors, case)
    return Result(
        operator=name,
        backend=backend,
        case=case.name,
        dtype=dtype,
        differences=tuple(difference(key, found[key].cpu(), expected[key]) for key in expected),
    )


def make(case: Case, *, device: str, dtype: torch.dtype) -> list[Tensor]:
    """The case's tensors on a device, floating ones in `dtype`, leaves that take gradients."""
    built = case.build(torch.Generator().manual_seed(0))
    tensors: list[Tensor] = []
    for index, tensor in enumerate(built):
        moved = tensor.to(device=device)
        if tensor.is_floating_point() and index not in case.stay_float32:
            moved = moved.to(dtype)
        tensors.append(moved.requires_grad_(index < case.differentiable))
    return tensors


def arguments(case: Case, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """What to call an operator with: tensors by position, tensors and options by name."""
    by_position = len(tensors) - len(case.keywords)
    named = zip(case.keywords, tensors[by_position:], strict=True)
    return tuple(tensors[:by_position]), {**dict(named), **case.options}


def difference(name: str, found: Tensor, expected: Tensor) -> Difference:
    """The largest difference, absolute and as a part of the largest expected value.

    Infinite where shapes differ, where something is infinite or NaN in one alone, and where
    integers differ at all.
    """
    unlike = Difference(tensor=name, absolute=float("inf"), relative=float("inf"))
    if found.shape != expected.shape:
        return unlike
    if not found.is_floating_point():
        return Difference(tensor=name, absolute=0, relative=0) if found.equal(expected) else unlike
    finite = expected.isfinite()
    if not bool((found.isfinite() == finite).all()):
        return unlike
    if not bool((found[~finite].double() == expected[~finite].double()).all()):
        return unlike
    found, expected = found[finite], expected[finite]
    if not found.numel():
        return Difference(tensor=name, absolute=0, relative=0)
    absolute = float((found.double() - expected.double()).abs().max())
    largest = float(expected.double().abs().max())
    relative = absolute / largest if largest else (0.0 if absolute == 0.0 else float("inf"))
    return Difference(tensor=name, absolute=absolute, relative=relative)


@contextlib.contextmanager
def poisoned() -> Generator[None]:
    """Fill every uninitialised tensor with NaN, so that reading one shows."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    # A module whose attribute is a property: pyright does not see it.
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = True
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def _leaf(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _forward_backward(
    run: Callable[..., Outputs], tensors: Sequence[Tensor], case: Case
) -> dict[str, Tensor]:
    leaves = [
        tensor.detach().clone().requires_grad_(index < case.differentiable)
        for index, tensor in enumerate(tensors)
    ]
    args, options = arguments(case, leaves)
    outputs = as_tuple(run(*args, **options))
    names = ("output",) if len(outputs) == 1 else tuple(f"output {i}" for i in range(len(outputs)))
    found = {name: out.detach() for name, out in zip(names, outputs, strict=True)}
    found |= {f"tensor {index} after": leaves[index].detach() for index in case.mutated}
    if not case.differentiable:
        return found
    with_gradient = [out for out in outputs if out.requires_grad]
    upstream = [_weights(out, seed) for seed, out in enumerate(with_gradient)]
    torch.autograd.backward(with_gradient, upstream)
    for index, leaf in enumerate(leaves[: case.differentiable]):
        gradient = leaf.grad
        found[f"gradient {index}"] = torch.zeros_like(leaf) if gradient is None else gradient
    return found


def as_tuple(outputs: Outputs) -> tuple[Tensor, ...]:
    """An operator's outputs, one or several, as a tuple."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _weights(out: Tensor, seed: int) -> Tensor:
    drawn = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed + 1))
    return drawn.to(device=out.device, dtype=out.dtype)
