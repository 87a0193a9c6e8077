"""Fine-tuning on the fake NPU, on the fused operators, gives the losses of the CPU.

Packed samples go through the fused attention's documents: plain causal attention over their rows
would give other losses. Both runs share a process, as importing torch_npu takes most of one.
"""

import json
from pathlib import Path

import pytest
import yaml

from fake_npu.environment import ROOT
from sft_data import make_chats, write_packed, write_samples
from train_curves import train_curves

pytestmark = pytest.mark.timeout(600)

SEQ_LENGTH = 48
STEPS = 3
TOLERANCE = 1e-5
GOLDEN_ARCH = ROOT / "tests" / "contracts" / "arch" / "golden" / "qwen3_tiny.json"
LAYERS = 4
LINEARS = ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]
BOTH_WAYS = {
    *("npu_rms_norm", "npu_rms_norm_backward", "npu_swiglu", "npu_swiglu_backward"),
    *("npu_rotary_mul", "npu_rotary_mul_backward"),
    *("npu_fusion_attention", "npu_fusion_attention_grad"),
    *("npu_cross_entropy_loss", "npu_cross_entropy_loss_backward"),
}
RUNS = ("packed", "lora")


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """Full fine-tuning of packed chats, and adapters on the same chats one by one."""
    folder = tmp_path_factory.mktemp("finetuning")
    chats = make_chats(12)
    data = {
        "packed": write_packed(folder / "packed", chats, seq_length=SEQ_LENGTH),
        "lora": write_samples(folder / "chats", chats),
    }
    return {
        name: {
            "stage": "sft",
            "model": {"arch": str(GOLDEN_ARCH), "init_std": 0.1},
            "data": {"train": [str(data[name])]},
            "train": {"max_steps": STEPS, "seq_length": SEQ_LENGTH, "global_batch_size": 2},
            "optimizer": {"lr": 1e-2 if name == "lora" else 1e-3},
            "save": {"path": str(folder / name)},
            "device": "cpu",
            **({"lora": {"rank": 4, "target_modules": LINEARS}} if name == "lora" else {}),
        }
        for name in RUNS
    }


@pytest.fixture(scope="module")
def cpu_curves(documents):
    return {name: train_curves({name: made}, 1)[name] for name, made in documents.items()}


@pytest.fixture(scope="module")
def npu(documents, environment):
    """By run its folder's metrics, and how often each operator was called."""
    configs = []
    for name, made in documents.items():
        on_npu = {**made, "device": "npu", "kernels": "llm-kernels-npu"}
        configs.append(Path(made["save"]["path"]).parent / f"{name}.yaml")
        configs[-1].write_text(yaml.safe_dump(on_npu))
    script = ROOT / "tests" / "npu" / "train_each.py"
    done = environment.run(str(script), *map(str, configs), timeout_s=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return {config.stem: (curve(config), calls(config.with_suffix(".calls"))) for config in configs}


def curve(config):
    metrics = config.with_suffix("") / "metrics.jsonl"
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [(record["loss"], record["grad_norm"]) for record in records if "loss" in record]


def calls(file):
    counts = dict(line.split() for line in file.read_text().splitlines())
    return {name.removeprefix("npu::"): int(count) for name, count in counts.items()}


@pytest.mark.parametrize("run", RUNS)
def test_finetuning_on_the_npu_gives_the_losses_of_the_cpu(run, npu, cpu_curves):
    found, wanted = npu[run][0], cpu_curves[run]
    assert len(found) == len(wanted) == STEPS
    for step, (one, two) in enumerate(zip(found, wanted, strict=True), start=1):
        assert one[0] == pytest.approx(two[0], abs=TOLERANCE), f"loss of step {step}"
        assert one[1] == pytest.approx(two[1], rel=1e-4), f"gradient norm of step {step}"
    assert wanted[-1][0] != wanted[0][0]


@pytest.mark.parametrize("run", RUNS)
def test_finetuning_on_the_npu_is_made_of_fused_operators(run, npu):
    called = npu[run][1]
    assert called.keys() >= BOTH_WAYS
    # Two micro-batches a step; nothing else attends.
    assert called["npu_fusion_attention"] == called["npu_fusion_attention_grad"]
    assert called["npu_fusion_attention"] == LAYERS * STEPS * 2
    assert not any("scaled_dot_product" in name for name in called)
