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


def passes(*selection):
    done = environment.run("-m", "pytest", INSIDE, "-p", "no:cacheprovider", *selection)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    found = re.search(r"(\d+) passed", done.stdout)
    assert found is not None, done.stdout
    return int(found[1])


def test_every_tile_compiles_for_every_ascend_chip_within_our_budget():
    assert passes("-m", "not slow") > 30


# Half a minute; last run 2026-11-27.
@pytest.mark.slow
def test_lowered_kernels_equal_their_references_in_every_case():
    assert passes("-m", "slow") > 3
