"""Runs what needs triton-ascend in its own environment, made on first use (206 MB to fetch)."""

import re

import pytest

from triton_aot import environment

INSIDE = "tests/llm_kernels_npu/aot/inside"
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        environment.why_impossible() is not None, reason=str(environment.why_impossible())
    ),
]


def passes(*selection, of="", timeout_s=800):
    arguments = ("-m", "pytest", INSIDE + of, "-p", "no:cacheprovider", *selection)
    done = environment.run(*arguments, timeout_s=timeout_s)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    found = re.search(r"(\d+) passed", done.stdout)
    assert found is not None, done.stdout
    return int(found[1])


def test_every_tile_compiles_for_every_ascend_chip_within_our_budget():
    assert passes("-m", "not slow") > 30


# Minutes each alone, half an hour beside other work.
@pytest.mark.slow
@pytest.mark.timeout(2000)
@pytest.mark.parametrize("part", ["budget", "compiles", "execution"])
def test_every_tile_case_and_dtype_on_ascend(part):
    selection = ("-m", "slow", "--timeout", "1800")
    assert passes(*selection, of=f"/test_ascend_{part}.py", timeout_s=1900) > 3
