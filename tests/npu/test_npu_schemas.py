"""The NPU backends bind to torch_npu's schemas, on any machine: the schemas are committed.

Each backend's calls go through torch's dispatcher, with what the fake NPU computes behind it, so
that names, types and defaults are checked by torch itself. Only what a backend calls itself: the
gradients that torch_npu brings are tests/npu/inside's to check.
"""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fake_npu import schemas
from fake_npu.device import bind_by_name
from fake_npu.operators import FUSED
from llm_kernels_npu.cases import check_cases
from llm_kernels_npu.parity import Result, compare
from llm_kernels_npu.registry import OPERATORS

WITH_NPU = [
    name for name, entry in OPERATORS.items() if any(b.name == "npu" for b in entry.backends)
]


@pytest.fixture(scope="module")
def calls():
    """Defines the committed operators on the CPU; lists the names of those called."""
    if "torch_npu" in sys.modules:
        pytest.skip("torch_npu is loaded and defines its operators itself")
    called = []
    library = torch.library.Library("npu", "DEF")
    for name, text in schemas.committed().schemas.items():
        schema = torch._C.parse_schema(text)
        compute = FUSED[name.split(".")[0]]

        def run(*args, schema=schema, compute=compute, name=name, **kwargs):
            called.append(name)
            return compute(**bind_by_name(schema.arguments, args, kwargs))

        library.define(text)
        library.impl(name, run, "CPU")
    yield called
    library._destroy()


@pytest.mark.parametrize("name", WITH_NPU)
def test_backend_binds_to_the_schemas_and_computes_as_the_reference(name, calls):
    backend = importlib.import_module(f"llm_kernels_npu.ops.{name}.npu")
    source = Path(backend.__file__)
    own_gradient = "autograd.Function" in source.read_text()
    calls.clear()
    for case in check_cases(name):
        if case.features & OPERATORS[name].backend("npu").lacks:
            continue
        taken = case if own_gradient else replace(case, differentiable=0)
        result = compare(
            name,
            "reference",
            taken,
            device="cpu",
            dtype=torch.bfloat16,
            run=getattr(backend, name),
        )
        assert isinstance(result, Result), result
        assert result.passed, (case.name, result.worst)
    assert set(calls) == schemas.called(source)


def test_list_holds_what_the_backends_call_and_no_more():
    assert set(schemas.committed().schemas) == schemas.called_by_backends()


def test_call_that_does_not_fit_is_refused(calls):
    x = torch.ones(2, 8)
    with pytest.raises(RuntimeError, match="eps"):
        torch.ops.npu.npu_rms_norm.default(x, torch.ones(8), eps=1e-6)
    with pytest.raises(RuntimeError, match="type 'int' for argument 'approximate'"):
        torch.ops.npu.npu_geglu.default(x, -1, "tanh")


@pytest.mark.slow  # makes the environment of the fake NPU; last run 2026-11-27
def test_list_is_that_of_the_torch_npu_we_lock(environment):
    (site_packages,) = environment.python.parents[1].glob("lib/python*/site-packages")
    assert schemas.shipped(site_packages) == schemas.committed()
