"""The command: tables, exit codes, the JSON file."""

import importlib.util
import json
import struct

import pytest
from click.testing import CliRunner

from llm_kernels_npu import parity
from llm_kernels_npu.cli import main
from llm_kernels_npu.edge import plot_file, report
from llm_kernels_npu.registry import OPERATORS
from llm_kernels_npu.timing import Timing

SMALL = ["--op", "swiglu", "--device", "cpu", "--dtype", "float32"]


def run(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, list(args))
    assert result.exit_code == code, result.output
    return result.output


def test_list_shows_every_operator_and_why_not():
    out = run("list", "--device", "cpu")
    for name in OPERATORS:
        assert name in out
    assert "serves npu, not cpu" in out
    assert "auto, no softcap" in out


def test_check_prints_differences_and_succeeds():
    out = run("check", *SMALL)
    assert "swiglu" in out
    assert "rms_norm" not in out
    assert "2e-05" in out


def test_check_verbose_has_a_line_a_case():
    assert "5x62 scale=20.0" in run("check", "--verbose", *SMALL)


def break_torch_swiglu(monkeypatch):
    load = parity.load

    def broken(name, backend):
        run, limit = load(name, backend)
        return (lambda x: run(x) * 1.01, limit) if backend == "torch" else (run, limit)

    monkeypatch.setattr(parity, "load", broken)


def test_check_of_a_wrong_kernel_exits_1(monkeypatch):
    break_torch_swiglu(monkeypatch)
    assert "FAILED" in run("check", *SMALL, code=1)


def test_bench_does_not_time_a_wrong_kernel(monkeypatch, tmp_path):
    break_torch_swiglu(monkeypatch)
    file = tmp_path / "bench.json"
    out = run("bench", *SMALL, "--seconds", "0", "--output", str(file), code=1)
    assert "not timed: parity failed" in out
    timed = {timing["backend"] for timing in json.loads(file.read_text())["timings"]}
    assert timed == {"reference"}


def test_bench_writes_json_and_leaves_nothing_partial(tmp_path):
    run("bench", *SMALL, "--seconds", "0", "--output", str(tmp_path / "new" / "bench.json"))
    (file,) = (tmp_path / "new").iterdir()
    document = json.loads(file.read_text())
    assert document["format"] == "llm-kernels-npu bench v1"
    timing = document["timings"][1]
    assert timing["backend"] == "torch"
    assert timing["dtype"] == "float32"
    assert timing["forward_us"] > 0
    assert timing["repeats"] >= 5


def test_bench_draws_a_png(tmp_path):
    file = tmp_path / "new" / "bench.png"
    out = run("bench", *SMALL, "--seconds", "0", "--plot", str(file))
    assert f"wrote {file}" in out.replace("\n", "")
    assert list(file.parent.iterdir()) == [file]
    content = file.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width == 1300
    assert 200 < height < 400


def test_plot_without_matplotlib_names_the_extra_before_timing(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(report, "measure", None)
    out = run("bench", *SMALL, "--plot", str(tmp_path / "bench.png"), code=1)
    assert "pip install 'llm-kernels-npu[plot]'" in out


def test_speeds_are_multiples_of_the_references():
    def timing(backend, forward, both, *, case="a"):
        numbers = {"forward_us": forward, "forward_backward_us": both, "repeats": 5}
        names = {"operator": "op", "backend": backend, "case": case}
        return Timing(device="cpu", dtype="float32", **names, **numbers)

    timings = [
        timing("reference", 10.0, 30.0),
        timing("torch", 10.0, 15.0),
        timing("reference", 8.0, None, case="no gradients"),
        timing("triton", 16.0, None, case="no gradients"),
        timing("torch", 1.0, 1.0, case="reference not timed"),
    ]
    assert plot_file.speeds(timings) == {
        ("op", "a", "float32"): {"reference": 1.0, "torch": 2.0},
        ("op", "no gradients", "float32"): {"reference": 1.0, "triton": 0.5},
    }


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("check", "--op", "rmsnorm"), 2, "did you mean rms_norm?"),
        (("check", "--device", "gpu"), 2, "unknown device 'gpu'"),
        (("list", "--device", "gpu"), 2, "choices: auto, cpu, cuda, npu"),
        (("bench", "--dtype", "int8"), 2, "bfloat16"),
        (("bench", "--plot", "bench.pdf"), 2, "want a name in .png"),
        (("frobnicate",), 2, "No such command"),
    ],
)
def test_wrong_usage_exits_2(args, code, text):
    out = run(*args, code=code)
    assert text in out
    assert "Traceback" not in out


def test_absent_device_exits_1_with_the_devices_here(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = run("check", "--device", "cuda", code=1)
    assert "device cuda: torch.cuda.is_available() is false" in out
    assert "cpu)" in out


def test_help_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in ("list", "check", "bench"):
        page = run(command, "--help").replace("\n", " ")
        example = page.split("Example:")[1].split()
        assert example[:2] == ["llm-kernels-npu", command]
        run(*example[1:])
    assert (tmp_path / "bench.json").exists()
