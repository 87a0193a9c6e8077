"""The command: tables, exit codes, the JSON file."""

import json

import pytest
from click.testing import CliRunner

from llm_kernels_npu import parity
from llm_kernels_npu.cli import main
from llm_kernels_npu.registry import OPERATORS

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


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("check", "--op", "rmsnorm"), 2, "did you mean rms_norm?"),
        (("check", "--device", "gpu"), 2, "unknown device 'gpu'"),
        (("list", "--device", "gpu"), 2, "choices: auto, cpu, cuda, npu"),
        (("bench", "--dtype", "int8"), 2, "bfloat16"),
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
