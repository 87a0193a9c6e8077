"""What does not go with weights that are cut over the data-parallel ranks, and why."""

import json
from pathlib import Path

import pytest

from llm_train.arch import parse as parse_arch
from llm_train.check import notes, problems
from llm_train.config_parse import parse

GOLDEN = Path(__file__).resolve().parents[1] / "contracts/arch/golden/llama_tiny.json"
ARCH = parse_arch(json.loads(GOLDEN.read_text()), where="arch")


def run(parallel, **sections):
    document = {
        "model": {"arch": "arch.json"},
        "data": {"train": ["data/a"]},
        "train": {"max_steps": 10, "seq_length": 32, "global_batch_size": 8},
        "optimizer": {"lr": 1e-3},
        "save": {"path": "run"},
        "parallel": parallel,
        "device": "cpu",
    }
    for name, changes in sections.items():
        document[name] = {**document.get(name, {}), **changes}
    return parse(document, [], "run.yaml")


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"optimizer": {"distributed": False}}, "optimizer.distributed=false: it cuts"),
        ({"parallel": {"overlap_grad_reduce": True}}, "parallel.overlap_grad_reduce=true: "),
        ({"parallel": {"overlap_param_gather": True}}, "parallel.overlap_param_gather=true: "),
        ({"train": {"precision": "fp16"}}, "train.precision=fp16: its gradients are not scaled"),
        ({"memory": {"offload_optimizer": True}}, "memory.offload_optimizer=true: "),
        ({"memory": {"optimizer_state": "bf16"}}, "memory.optimizer_state=bf16: "),
        ({"memory": {"offload_activations": ["mlp"]}}, "memory.offload_activations: "),
        (
            {"memory": {"reuse_parameter_copy": True}, "train": {"precision": "bf16"}},
            "memory.reuse_parameter_copy=true: the fp32 rows are the only copy",
        ),
        (
            {"memory": {"master_weights": "bf16"}, "train": {"precision": "bf16"}},
            "memory.master_weights=bf16: weights are cut as fp32 masters",
        ),
        (
            {"memory": {"gradients": "bf16"}, "train": {"precision": "bf16"}},
            "memory.gradients=bf16: gradients are summed in fp32",
        ),
    ],
)
def test_what_does_not_go_with_sharded_weights_is_refused_with_the_reason(sections, words):
    for is_sharded in (True, False):
        parallel = {"fsdp": is_sharded, **sections.get("parallel", {})}
        others = {name: value for name, value in sections.items() if name != "parallel"}
        found = [one for one in problems(run(parallel, **others), ARCH, 2) if "fsdp" in one]
        if not is_sharded:
            assert found == []
            continue
        (problem,) = found
        assert problem.startswith(f"parallel: fsdp=true does not go with {words}")


def test_sharded_weights_go_with_every_way_to_split_a_model():
    for parallel, world_size in (({"tp": 2}, 4), ({"pp": 2, "vpp": 2}, 4), ({"cp": 2}, 2)):
        assert problems(run({**parallel, "fsdp": True}), ARCH, world_size) == []


def test_what_has_no_effect_is_noted():
    word = {"fsdp_reshard_after_forward": False}
    assert notes(run(word), ARCH) == [
        "parallel.fsdp_reshard_after_forward has no effect with fsdp=false"
    ]
    assert notes(run({**word, "fsdp": True}), ARCH) == []
