"""Triton's kernels interpreted on the CPU, in a process of their own."""

import os
import re
import subprocess
import sys

import pytest

INSIDE = "tests/llm_kernels_npu/interpreted"


# The slow ones, two minutes, last run by hand on 2026-11-27.
@pytest.mark.timeout(900)
@pytest.mark.parametrize("chosen", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_interpreted_kernels_equal_their_references(pytestconfig, chosen):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", INSIDE, "-p", "no:cacheprovider", "-m", chosen],
        cwd=pytestconfig.rootpath,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    found = re.search(r"(\d+) passed", done.stdout)
    assert found is not None, done.stdout
    assert int(found[1]) > 20
