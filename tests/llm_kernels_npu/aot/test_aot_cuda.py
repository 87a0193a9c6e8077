"""Every Triton kernel compiled for NVIDIA devices not at hand."""

import pytest
import torch

from llm_kernels_npu.registry import OPERATORS
from triton_aot import calls, cuda

DTYPES = (torch.float32, torch.bfloat16)
WRITTEN = {
    name
    for name, entry in OPERATORS.items()
    if any(backend.name == "triton" for backend in entry.backends)
}

RECURRENCES = ("gated_delta_rule", "mamba2_scan")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing that a former run compiled."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compiles(launch, capability):
    compiled = cuda.compile_cubin(launch, capability)
    assert compiled.asm["cubin"][:4] == b"\x7fELF"
    assert compiled.metadata.shared <= cuda.SHARED_BYTES[capability], str(launch)


def test_every_triton_operator_has_calls():
    assert set(calls.CALLS) == WRITTEN


# The kernels of the recurrences have many products each, and take long.
QUICK = [
    pytest.param(name, marks=pytest.mark.slow if name in RECURRENCES else ())
    for name in calls.CALLS
]


@pytest.mark.parametrize("capability", sorted(cuda.SHARED_BYTES))
@pytest.mark.parametrize("name", QUICK)
def test_each_kernel_compiles_to_a_cubin(name, capability):
    for launch in calls.first_of_each_kernel(name, torch.bfloat16, variants=False):
        compiles(launch, capability)


@pytest.mark.parametrize("key", [128, 256])
@pytest.mark.parametrize("capability", sorted(cuda.SHARED_BYTES))
def test_outputs_of_a_recurrence_of_wide_keys_compile_to_a_cubin(capability, key):
    launch = next(
        one
        for one in calls.launches("gated_delta_rule", torch.bfloat16)
        if one.kernel.fn.__name__ == "output_kernel" and dict(one.constants)["KEY"] == key
    )
    compiles(launch, capability)


# Twenty minutes beside other work, all but three of them the recurrences; last run 2026-11-27.
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("capability", sorted(cuda.SHARED_BYTES))
@pytest.mark.parametrize("name", calls.CALLS)
def test_every_tile_compiles_to_a_cubin(name, capability):
    for dtype in DTYPES:
        for launch in calls.launches(name, dtype):
            compiles(launch, capability)
