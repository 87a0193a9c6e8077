"""Runs what needs an NPU on the fake one, in the environment that has torch_npu."""

import re

import pytest

pytestmark = pytest.mark.timeout(900)


def test_npu_tests_pass_on_the_fake_device(environment):
    parity = "tests/llm_kernels_npu/test_kernels_parity.py"
    done = environment.run(
        "-m", "pytest", "tests/npu/inside", parity, "-m", "npu", "-v", timeout_s=800
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    count = re.search(r"(\d+) passed", done.stdout)
    assert count is not None
    assert int(count[1]) > 150


def test_computing_past_the_fake_fails_and_gives_no_garbage(environment):
    """In a process of its own: torch_npu is not fit for use after such an error."""
    code = (
        "import torch, torch_npu\n"
        "from torch.utils._python_dispatch import _disable_current_modes\n"
        "x = torch.ones(3).npu()\n"
        "with _disable_current_modes():\n"
        "    try: (x + 1).cpu()\n"
        "    except RuntimeError as error: print('refused:', error, flush=True)\n"
        "import os; os._exit(0)\n"
    )
    done = environment.run("-c", code)
    assert "refused: " in done.stdout, done.stdout + done.stderr[-2000:]
