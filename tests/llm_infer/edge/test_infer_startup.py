"""What a command does not do before it answers."""

import gc
import subprocess
import sys

from llm_infer.edge.startup import read_through, starting, weight_files

PROGRAM = """
import sys
from llm_infer.cli import main
main(["generate", sys.argv[1], "--device", "cpu", "--prompt", "def", "--max-new-tokens", "2"],
     standalone_mode=False)
maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
print(*{line.rpartition("/")[2] for line in maps.splitlines() if "libtorch_cpu" in line})
print("transformers" in sys.modules, "jinja2" in sys.modules, "fastapi" in sys.modules)
"""


def test_the_native_engine_answers_without_transformers(models):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, models["qwen3"]],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    *_, libraries, imported = done.stdout.splitlines()
    # Loaded once: the copy found first is the one that torch uses.
    assert libraries in ("libtorch_cpu.so", "")
    assert imported == "False False False"


def test_the_collector_rests_meanwhile_and_goes_on_after_an_error(models):
    assert gc.isenabled()
    try:
        with starting(models["qwen3"]):
            assert not gc.isenabled()
            raise KeyError
    except KeyError:
        assert gc.isenabled()


def test_weights_are_read_through_where_they_fit_and_what_is_missing_is_no_error(
    models, tmp_path, monkeypatch
):
    (found,) = weight_files(models["qwen3"])
    assert found.name == "model.safetensors"
    read_through([found, tmp_path / "missing"])
    monkeypatch.setattr("llm_infer.edge.startup._MEMORY_SHARE", 0.0)
    assert weight_files(models["qwen3"]) == []
