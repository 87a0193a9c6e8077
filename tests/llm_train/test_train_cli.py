"""The command as its user meets it: output, exit codes, start-up time, ranks that die."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from llm_train import cli
from llm_train.config import Device, RunConfig
from llm_train.edge.start import fewest_ranks, variables_before_torch

ROOT = Path(__file__).resolve().parents[2]
ARCH = ROOT / "tests/contracts/arch/golden/llama_tiny.json"


def write_dataset(prefix):
    """One document of four tokens, by hand as megatron-core's index has it."""
    Path(f"{prefix}.bin").write_bytes(struct.pack("<4H", 1, 2, 3, 4))
    head = struct.pack("<9sQBQQ", b"MMIDIDX", 1, 8, 1, 2)
    Path(f"{prefix}.idx").write_bytes(head + struct.pack("<iqqq", 4, 0, 0, 1))


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "run.yaml"
    write_dataset(tmp_path / "a")
    path.write_text(
        f"model: {{arch: {ARCH}}}\n"
        f"data: {{train: [{tmp_path / 'a'}]}}\n"
        "train: {max_steps: 10, seq_length: 32, global_batch_size: 4}\n"
        "optimizer: {lr: 1e-3}\n"
        f"save: {{path: {tmp_path / 'out'}}}\n"
        "device: cpu\n"
    )
    return path


def invoke(*words):
    return CliRunner().invoke(cli.main, [str(word) for word in words])


def test_check_shows_every_setting_the_model_and_what_falls_to_each_rank(config_file):
    result = invoke("check", config_file, "parallel.tp=2", "--world-size", "4")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert "  max_steps: 10" in lines
    assert "  decay_steps: 10" in lines
    assert lines[-4:] == [
        "model: llama, 4 layers of attention, hidden 64, 4 heads, 2 query groups, vocabulary 256, "
        "positions 128",
        "layout: tp(2) * cp(1) * pp(1) * dp(2) = 4 ranks",
        "batch: 2 micro-batches of 1 on each of 2 = 4 sequences, 128 tokens a step",
        "ok",
    ]


def test_check_prints_settings_that_read_back_as_the_same_config(config_file, tmp_path):
    from llm_train.edge.config_file import load

    shown = invoke("check", config_file, "optimizer.lr=3e-4").output.partition("\nmodel: ")[0]
    (tmp_path / "again.yaml").write_text(shown)
    assert load(tmp_path / "again.yaml") == load(config_file, ["optimizer.lr=3e-4"])


def test_check_tells_every_problem_and_exits_1(config_file):
    result = invoke("check", config_file, "parallel.tp=2", "parallel.pp=3", "--world-size", "8")
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        f"Error: {config_file}: parallel: tp(2) * cp(1) * pp(3) = 6 does not divide world size 8; "
        "wanted tp * cp * pp * dp = world size",
        f"{config_file}: parallel: layers(4) is not a multiple of pp(3); add noop_layers, or say "
        "layers_per_stage",
    ]


@pytest.mark.parametrize("command", ["run", "check"])
def test_an_unknown_key_is_an_error_of_one_sentence(config_file, command):
    result = invoke(command, config_file, "train.max_stepz=3")
    assert result.exit_code == 1
    assert result.output.startswith(
        "Error: override 'train.max_stepz=3': train.max_stepz: unknown key; did you mean "
        "max_steps? (keys: max_steps,"
    )


def test_a_missing_file_is_named(config_file):
    result = invoke("check", "none.yaml")
    assert (result.exit_code, result.output) == (
        1,
        "Error: none.yaml: No such file or directory; wanted a YAML file\n",
    )
    result = invoke("check", config_file, "model.arch=none.json")
    assert (result.exit_code, result.output) == (
        1,
        "Error: none.json: no such file, wanted an arch.json\n",
    )


def test_a_broken_arch_file_is_named(config_file, tmp_path):
    for text, words in (("{", "not JSON"), ("[]", "found a list, wanted a JSON object")):
        (tmp_path / "a.json").write_text(text)
        result = invoke("check", config_file, f"model.arch={tmp_path}/a.json")
        assert result.exit_code == 1
        assert f"{tmp_path}/a.json: {words}" in result.output


def test_the_arch_beside_a_megatron_checkpoint_is_used(config_file, tmp_path):
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt/arch.json").write_text(ARCH.read_text())
    words = ("model.arch=null", f"model.load={tmp_path}/ckpt")
    assert "model: llama, 4 layers" in invoke("check", config_file, *words).output


@pytest.mark.parametrize(
    "words",
    [
        ["run"],
        ["check", "run.yaml", "--world-size", "0"],
        ["run", "run.yaml", "--nproc", "none"],
        ["plot"],
        ["train"],
    ],
)
def test_wrong_usage_exits_2(words):
    assert invoke(*words).exit_code == 2


def test_nproc_inside_a_rank_is_wrong_usage(config_file, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    result = invoke("run", config_file, "--nproc", "2")
    assert result.exit_code == 2
    assert "RANK is set" in result.output


@pytest.mark.parametrize("words", [[], ["run"], ["check"], ["plot"], ["schema"]])
def test_every_command_shows_an_example(words):
    result = invoke(*words, "--help")
    assert result.exit_code == 0
    assert "Example:\n    llm-train " in result.output


def test_schema_is_the_json_schema_of_the_config():
    found = json.loads(invoke("schema").output)
    assert list(found["properties"]) == list(RunConfig.model_fields)
    assert found["additionalProperties"] is False
    assert "description" in found["$defs"]["TrainConfig"]["properties"]["seq_length"]


def test_plot_writes_the_png_of_a_run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    result = invoke("plot", tmp_path)
    assert (result.exit_code, result.output) == (0, f"wrote {tmp_path}/loss.png\n")
    result = invoke("plot", tmp_path / "none")
    assert result.exit_code == 1
    assert "wanted a run folder or its metrics.jsonl" in result.output


def test_the_fewest_ranks_are_the_smallest_world_the_layout_fits():
    def ranks(**sizes) -> int:
        return fewest_ranks(
            RunConfig.model_validate(
                {
                    "model": {"arch": "a"},
                    "data": {"train": ["d"]},
                    "train": {"max_steps": 1, "seq_length": 1, "global_batch_size": 1},
                    "optimizer": {"lr": 1},
                    "save": {"path": "r"},
                    "parallel": sizes,
                }
            )
        )

    assert ranks() == 1
    assert ranks(tp=2, pp=2) == 4
    assert ranks(ep=2) == 2
    assert ranks(tp=2, ep=4, etp=1) == 4
    assert ranks(tp=2, pp=2, ep=3) == 12


def test_torch_is_told_before_it_is_imported_not_to_compile_on_a_cpu():
    cpu = {"TORCH_COMPILE_DISABLE": "1", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    assert variables_before_torch(Device.CPU, 1, {}) == cpu
    assert variables_before_torch(Device.CUDA, 1, {}) == {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    assert variables_before_torch(Device.NPU, 1, {}) == {"TORCH_COMPILE_DISABLE": "1"}
    users = {"TORCH_COMPILE_DISABLE": "0"}
    assert variables_before_torch(Device.CPU, 1, users) == {**cpu, **users}


def test_tensor_parallel_ranks_queue_their_work_in_order():
    name = "CUDA_DEVICE_MAX_CONNECTIONS"
    assert variables_before_torch(Device.CUDA, 2, {})[name] == "1"
    assert variables_before_torch(Device.CUDA, 2, {name: "8"})[name] == "8"
    assert name not in variables_before_torch(Device.CUDA, 1, {})


@pytest.fixture
def command(tmp_path):
    """Start the command with an engine that needs no megatron-core, in its ranks too."""
    started: list[subprocess.Popen[str]] = []

    def start(engine: str, *words) -> subprocess.Popen[str]:
        # Every interpreter imports this first, the ranks' too.
        fake = tmp_path / "site"
        fake.mkdir(exist_ok=True)
        (fake / "sitecustomize.py").write_text(
            "import sys, types\n"
            "engine = types.ModuleType('llm_train.edge.run')\n"
            f"exec({engine!r}, engine.__dict__)\n"
            "package = types.ModuleType('llm_train.train')\n"
            "package.__path__ = []\n"
            "sys.modules['llm_train.train'] = package\n"
            "sys.modules['llm_train.edge.run'] = engine\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "llm_train", *map(str, words)],
            env={**os.environ, "PYTHONPATH": str(fake)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_run_gives_each_rank_the_config_with_its_overrides(command, config_file, tmp_path):
    engine = """
import os
def run(config):
    rank, world = os.environ["RANK"], os.environ["WORLD_SIZE"]
    (config.save.path / f"seen_{rank}").write_text(f"{world} {config.train.max_steps}")
"""
    process = command(engine, "run", config_file, "train.max_steps=77", "parallel.tp=2")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "")
    logs = tmp_path / "out/logs"
    assert errors.splitlines() == [
        f"starting 2 ranks on this machine; output of all but rank 0 is in {logs}",
        "loading megatron-core ...",
    ]
    seen = [(tmp_path / f"out/seen_{rank}").read_text() for rank in (0, 1)]
    assert seen == ["2 77", "2 77"]


def test_one_rank_runs_in_the_process_itself(command, config_file, tmp_path):
    engine = """
import os
def run(config):
    assert "RANK" not in os.environ
    print(os.environ["TORCH_COMPILE_DISABLE"])
"""
    output, errors = command(engine, "run", config_file).communicate(timeout=60)
    assert (output, errors) == ("1\n", "loading megatron-core ...\n")
    assert not (tmp_path / "out").exists()


def test_a_dying_rank_ends_the_run_with_its_error_first_and_exit_code_1(command, config_file):
    engine = """
import os, time
from llm_train.overrides import ConfigError
def run(config):
    if os.environ["RANK"] == "1":
        raise ConfigError("data/a.idx: 12 bytes, wanted 34")
    time.sleep(300)
"""
    process = command(engine, "run", config_file, "--nproc", "2")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.partition("Error: ")[2].splitlines()[:2] == [
        "rank 1 of 2 failed first: exit code 1",
        "data/a.idx: 12 bytes, wanted 34",
    ]
    assert "Traceback" not in errors


def test_a_bug_keeps_its_traceback(command, config_file):
    engine = "def run(config):\n    raise ZeroDivisionError('a bug')\n"
    for nproc in ("1", "2"):
        process = command(engine, "run", config_file, "--nproc", nproc)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "Traceback (most recent call last)" in errors
        assert "ZeroDivisionError: a bug" in errors


def test_ctrl_c_ends_the_ranks_and_the_command(command, config_file, tmp_path):
    engine = """
import os, time
def run(config):
    (config.save.path / f"pid_{os.environ['RANK']}").write_text(str(os.getpid()))
    time.sleep(300)
"""
    process = command(engine, "run", config_file, "--nproc", "2")
    out = tmp_path / "out"
    deadline_s = time.monotonic() + 60
    while len(list(out.glob("pid_*"))) < 2 and time.monotonic() < deadline_s:
        time.sleep(0.05)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stopped by SIGINT; all 2 ranks have ended" in errors
    for file in out.glob("pid_*"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)


@pytest.mark.parametrize("words", [["--help"], ["check"]])
def test_start_up_imports_no_torch_and_takes_at_most_a_second(words, config_file):
    full = [*words, str(config_file)] if words == ["check"] else words
    code = "import sys; from llm_train.cli import main; main(sys.argv[1:], standalone_mode=False); "
    heavy = "print([m for m in ('torch', 'megatron', 'matplotlib') if m in sys.modules])"
    process = subprocess.run(
        [sys.executable, "-c", code + heavy, *full], capture_output=True, text=True, check=True
    )
    assert process.stdout.splitlines()[-1] == "[]"
    # Of processor time, which other work on the machine does not lengthen.
    before = os.times()
    subprocess.run([sys.executable, "-m", "llm_train", *full], capture_output=True, check=True)
    after = os.times()
    used_s = after.children_user + after.children_system
    used_s -= before.children_user + before.children_system
    assert used_s <= 1.0


def test_a_missing_dataset_is_told_before_any_rank_starts(config_file, tmp_path):
    result = invoke("run", config_file, "data.train=[none/such]", "parallel.tp=2")
    assert result.exit_code == 1
    assert result.output.startswith("Error: none/such.idx: no such file")
    assert not (tmp_path / "out").exists()
