"""benchmarks/kernels_gpu.py as far as it goes without a device: its tables, and what it says."""

import subprocess
import sys

import pytest
import torch


@pytest.fixture
def tables(pytestconfig, monkeypatch):
    monkeypatch.syspath_prepend(str(pytestconfig.rootpath / "benchmarks"))
    from kernels import tables

    return tables


def test_speed_table_gives_ratios_shares_and_what_missed(tables):
    rows = [
        # 1 MB in 1 µs is the whole of 1 TB/s.
        tables.Row("fast", "1x1", 1.0, 2.0, 1_000_000),
        tables.Row("slow", "2x2", 4.0, 2.0, 2_000_000),
        tables.Row("product", "3x3", 1000.0, 3375.0, None),
    ]
    text = tables.speed_table(rows, 1e12)
    assert "| fast | 1x1 | 1 | 2 | 2.00 | 100% |" in text
    assert "| product | 3x3 | 1,000 | 3,375 | 3.38 |  |" in text
    # The cube root of 2 * 1/2 * 3.375.
    assert "geometric mean 1.50x, goal 1.1x: met" in text
    missed = [line for line in text.splitlines() if line.startswith("missed")]
    assert missed == [
        "missed: slow 2x2: 0.50x, want 1.0x",
        "missed: slow 2x2: 50% of copy, want 80%",
    ]


def test_memory_table_is_beside_the_plain_one(tables):
    plain, ours = tables.Peak("plain", 300.0, 2**30), tables.Peak("ours", 200.0, 2**28)
    text = tables.memory_table(plain, [ours])
    assert "| plain | 300 | 1.00x | 1,024 | 100% |" in text
    assert "| ours | 200 | 1.50x | 256 | 25% |" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure")
def test_without_a_device_nothing_is_measured_and_it_says_so(pytestconfig):
    done = subprocess.run(
        [sys.executable, "benchmarks/kernels_gpu.py"],
        cwd=pytestconfig.rootpath,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "not measured: no CUDA device (torch.cuda.is_available() is false)\n"
