"""`llm-train run device=npu` on the fake device trains as `device=cpu` does.

The command is the user's own; the real torch_npu with transfer_to_npu runs under it, in an
environment of its own. Each rank spends half a minute on it, most of that on importing torch_npu,
so only the dense model under tensor parallelism and the experts, both on the fused operators, are
in the default tests. The others: last run 2026-11-27.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml

from fake_npu.environment import ROOT
from tiny_archs import EXPERTS as TINY

pytestmark = pytest.mark.timeout(900)

TOLERANCE = 1e-5
GOLDEN_ARCH = ROOT / "tests" / "contracts" / "arch" / "golden" / "qwen3_tiny.json"

EXPERTS = {**TINY, "ffn_hidden_size": 64}
KERNELS = "kernels=llm-kernels-npu"


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """A dataset of 50 documents over 250 ids, written by megatron-core's own builder."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefix = tmp_path_factory.mktemp("toy") / "toy"
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    random = np.random.RandomState(0)
    for length in random.randint(20, 200, size=50):
        tokens = np.cumsum(random.randint(0, 3, length)) % 250
        builder.add_document(torch.from_numpy(tokens.astype(np.uint16)), [int(length)])
    builder.finalize(f"{prefix}.idx")
    return prefix


@pytest.fixture(scope="module")
def configs(prefix, tmp_path_factory):
    """Three steps of the tiny Qwen3, dense and with experts in its last three layers."""
    folder = tmp_path_factory.mktemp("configs")
    moe = json.loads(GOLDEN_ARCH.read_text())
    layer = moe["layers"][0]
    moe["layers"] = [{**layer, "count": 1}, {**layer, "count": 3, "feed_forward": "moe"}]
    (folder / "moe_arch.json").write_text(json.dumps({**moe, "moe": EXPERTS}))
    written = {}
    for name, arch in (("dense", GOLDEN_ARCH), ("moe", folder / "moe_arch.json")):
        document = {
            "model": {"arch": str(arch), "init_std": 0.1},
            "data": {"train": [str(prefix)]},
            "train": {"max_steps": 3, "seq_length": 32, "global_batch_size": 4},
            "optimizer": {"lr": 1e-3, "warmup_steps": 1},
            "save": {"path": str(folder / f"{name}-cpu")},
            "device": "cpu",
        }
        written[name] = folder / f"{name}.yaml"
        written[name].write_text(yaml.safe_dump(document))
    return written


@pytest.fixture(scope="module")
def cpu_curves(configs):
    """Losses and gradient norms of the same runs in this environment, on one CPU process."""
    curves = {}
    for name, config in configs.items():
        command = [sys.executable, "-m", "llm_train", "run", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        curves[name] = curve(config.parent / f"{name}-cpu")
    return curves


def curve(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(record["loss"], record["grad_norm"]) for record in records if "loss" in record]


LAYOUTS = {
    "tp1": ("dense", 1, []),
    "tp2-sp": ("dense", 2, ["parallel.tp=2"]),
    "pp2": ("dense", 2, ["parallel.pp=2"]),
    "ep2": ("moe", 2, ["parallel.ep=2"]),
    "tp2-sp-kernels": ("dense", 2, ["parallel.tp=2", KERNELS]),
    "ep2-kernels": ("moe", 2, ["parallel.ep=2", "moe.grouped_gemm=true", KERNELS]),
}
# What `kernels` brings that plain torch does not call; losses and latents are not cut in these.
FUSED = {
    "dense": {
        *("npu_rms_norm", "npu_rms_norm_backward", "npu_swiglu", "npu_swiglu_backward"),
        *("npu_rotary_mul", "npu_rotary_mul_backward"),
        *("npu_fusion_attention", "npu_fusion_attention_grad"),
    },
    "moe": {
        *("npu_rms_norm", "npu_swiglu", "npu_rotary_mul", "npu_fusion_attention"),
        *("npu_cross_entropy_loss", "npu_cross_entropy_loss_backward"),
        *("npu_grouped_matmul", "npu_moe_token_permute", "npu_moe_token_permute_grad"),
        *("npu_moe_token_unpermute", "npu_moe_token_unpermute_grad"),
    },
}


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(name, marks=() if KERNELS in overrides else pytest.mark.slow)
        for name, (_, _, overrides) in LAYOUTS.items()
    ],
)
def test_training_on_the_npu_gives_the_losses_of_the_cpu(
    layout, configs, cpu_curves, environment, tmp_path, monkeypatch
):
    model, devices, overrides = LAYOUTS[layout]
    monkeypatch.setenv("FAKE_NPU_CALLS", str(tmp_path))
    run = tmp_path / "run"
    done = environment.run(
        *("-m", "llm_train", "run", str(configs[model]), "device=npu", f"save.path={run}"),
        *overrides,
        devices=devices,
        timeout_s=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found, wanted = curve(run), cpu_curves[model]
    assert len(found) == len(wanted) == 3
    for step, (one, two) in enumerate(zip(found, wanted, strict=True), start=1):
        assert one[0] == pytest.approx(two[0], abs=TOLERANCE), f"loss of step {step}"
        assert one[1] == pytest.approx(two[1], rel=1e-4), f"gradient norm of step {step}"
    assert wanted[-1][0] < wanted[0][0]
    ranks = [file.read_text() for file in tmp_path.glob("*.calls")]
    assert len(ranks) == devices
    for calls in ranks:
        fused = {line.split()[0].removeprefix("npu::") for line in calls.splitlines()}
        assert (fused >= FUSED[model]) == (KERNELS in overrides)
    printed = done.stderr.count("llm-kernels-npu: kernels on npu: rms_norm npu")
    assert printed == (1 if KERNELS in overrides else 0)


def test_run_without_torch_npu_says_what_would_bring_it(configs):
    command = [sys.executable, "-m", "llm_train", "run", str(configs["dense"]), "device=npu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "pip install 'llm-train[npu]'" in done.stderr
