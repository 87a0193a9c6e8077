"""What triton-ascend makes of the kernels, executed on the CPU against the references."""

import pytest
import torch

from llm_kernels_npu.cases import check_cases
from llm_kernels_npu.parity import TOLERANCE, arguments, as_tuple, difference, make
from llm_kernels_npu.registry import OPERATORS
from llm_kernels_npu.select import load
from triton_aot import calls, execute

DTYPES = (torch.float32, torch.bfloat16)


def all_calls():
    """Every case; the default tests take the first of each operator."""
    for name in calls.CALLS:
        lacks = OPERATORS[name].backend("triton").lacks
        for index, case in enumerate(check_cases(name)):
            for dtype in DTYPES:
                marks = () if index == 0 and dtype is torch.float32 else pytest.mark.slow
                if not lacks & case.features:
                    yield pytest.param(
                        name, case, dtype, marks=marks, id=f"{name}-{case.name}-{dtype}"
                    )


def outputs_and_gradients(run, tensors, case):
    leaves = [x.detach().clone().requires_grad_(x.requires_grad) for x in tensors]
    args, options = arguments(case, leaves)
    outputs = as_tuple(run(*args, **options))
    if not case.differentiable:
        return [*outputs, *(leaves[index] for index in case.mutated)]
    seed = torch.Generator().manual_seed(1)
    upstream = [torch.randn(out.shape, generator=seed).to(out.dtype) for out in outputs]
    torch.autograd.backward(outputs, upstream)
    return [*outputs, *(leaf.grad for leaf in leaves if leaf.requires_grad)]


@pytest.mark.parametrize(("name", "case", "dtype"), list(all_calls()))
def test_lowered_kernels_equal_the_reference(name, case, dtype):
    tensors = make(case, device="cpu", dtype=dtype)
    with execute.executed() as names:
        found = outputs_and_gradients(load(name, "triton")[0], tensors, case)
    assert names
    plain = [
        x.detach().float().requires_grad_(x.requires_grad) if x.is_floating_point() else x
        for x in tensors
    ]
    expected = outputs_and_gradients(load(name, "reference")[0], plain, case)
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        off = difference(str(index), ours.detach(), theirs.detach())
        assert off.relative <= TOLERANCE[dtype], off
