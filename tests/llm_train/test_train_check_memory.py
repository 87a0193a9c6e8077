"""Combinations of what saves memory that cannot be, each told with its reason."""

import copy
import json
from pathlib import Path

import pytest

from llm_train.arch import parse as parse_arch
from llm_train.check import notes, problems
from llm_train.config_parse import parse
from llm_train.overrides import ConfigError

GOLDEN = Path(__file__).resolve().parents[1] / "contracts/arch/golden/llama_tiny.json"
DENSE = json.loads(GOLDEN.read_text())
LAYERS = sum(run["count"] for run in DENSE["layers"])


def run(**sections):
    document = {
        "model": {"arch": "arch.json"},
        "data": {"train": ["data/a"]},
        "train": {"max_steps": 10, "seq_length": 32, "global_batch_size": 8},
        "optimizer": {"lr": 1e-3},
        "save": {"path": "run"},
    }
    for name, value in sections.items():
        is_section = isinstance(value, dict) and name in document
        document[name] = {**document[name], **value} if is_section else value
    return parse(document, [], "run.yaml")


def found(world_size=1, **sections):
    return problems(run(**sections), parse_arch(copy.deepcopy(DENSE), where="arch"), world_size)


def refusal(**sections):
    with pytest.raises(ConfigError) as caught:
        run(**sections)
    return str(caught.value)


def test_one_word_is_the_kind_of_recomputation():
    assert run(recompute="full") == run(recompute={"kind": "full"})
    assert run(recompute="selective").recompute.parts == ("core_attention",)
    assert run(recompute="full").recompute.parts == ()


@pytest.mark.parametrize(
    ("recompute", "words"),
    [
        ({"layers": 2}, "layers=2 is for kind=full, found kind=none"),
        ({"kind": "selective", "method": "block"}, "method=block is for kind=full"),
        ({"kind": "full", "modules": ["mlp"]}, "modules is for kind=selective, found kind=full"),
        ({"kind": "selective", "modules": ["mlp", "mlp"]}, "modules names one twice: mlp, mlp"),
    ],
)
def test_settings_of_another_kind_of_recomputation_are_refused(recompute, words):
    assert words in refusal(recompute=recompute)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("mla_up_proj", "mla"),
        ("moe", "experts"),
        ("shared_experts", "shared experts"),
    ],
)
def test_parts_that_the_model_has_not_are_refused(part, name):
    assert found(recompute={"kind": "selective", "modules": [part]}) == [
        f"recompute: modules has {part}, and no layer of the model has {name}"
    ]


def test_layers_to_recompute_must_be_in_every_chunk():
    assert LAYERS == 4
    full, block = {"kind": "full", "layers": 3}, {"kind": "full", "layers": 3, "method": "block"}
    assert found(2, parallel={"pp": 2}, recompute=block) == [
        "recompute: layers(3) > max(2, 2), the layers of the model chunks"
    ]
    assert found(2, parallel={"pp": 2, "layers_per_stage": [3, 1]}, recompute=block) == []
    assert found(recompute=block) == []
    wanted = "recompute: layers in a model chunk({}) is not a multiple of layers(3): {} % 3 = {}"
    assert found(recompute=full) == [wanted.format(4, 4, 1)]
    uneven = {"pp": 2, "layers_per_stage": [4, 1], "noop_layers": [0]}
    assert found(2, parallel=uneven, recompute=full) == [wanted.format(1, 1, 1)]


@pytest.mark.parametrize(
    "memory", [{"reuse_parameter_copy": True}, {"master_weights": "bf16"}, {"gradients": "bf16"}]
)
def test_what_is_of_bf16_weights_needs_them(memory):
    (name, value) = next(iter(memory.items()))
    said = f"{name}={json.dumps(value).strip(chr(34))}"
    for precision in ("fp32", "fp16"):
        assert found(memory=memory, train={"precision": precision}) == [
            f"memory: {said} needs train.precision=bf16, found {precision}"
        ]
    assert found(memory=memory, train={"precision": "bf16"}) == []


@pytest.mark.parametrize("memory", [{"offload_optimizer": True}, {"optimizer_state": "bf16"}])
def test_state_is_kept_otherwise_only_by_the_distributed_optimizer(memory):
    assert found(memory=memory, optimizer={"distributed": False}) == [
        "memory: offload_optimizer, optimizer_state=bf16, master_weights=bf16 and "
        "reuse_parameter_copy need optimizer.distributed=true"
    ]
    assert found(memory=memory) == []


def test_a_master_that_is_not_there_has_no_half_to_reuse():
    both = {"reuse_parameter_copy": True, "master_weights": "bf16"}
    assert "reuse_parameter_copy halves fp32 masters" in refusal(memory=both)


def test_what_is_computed_again_is_not_offloaded():
    memory = {"offload_activations": ["core_attention", "mlp"]}
    assert found(memory=memory) == []
    assert found(memory=memory, recompute="full") == [
        "memory: offload_activations with recompute.kind=full: a layer that is computed again "
        "keeps nothing that could be offloaded"
    ]
    assert found(memory=memory, recompute="selective") == [
        "memory: offload_activations has core_attention, of which recompute.modules with "
        "core_attention keeps nothing"
    ]
    both = {"offload_activations": ["core_attention", "self_attention"]}
    assert found(memory=both) == [
        "memory: offload_activations has core_attention, which is a part of self_attention"
    ]


@pytest.mark.parametrize("memory", [{"offload_optimizer": True}, {"offload_activations": ["mlp"]}])
def test_offloading_from_a_cpu_is_noted_to_save_nothing(memory):
    arch = parse_arch(copy.deepcopy(DENSE), where="arch")
    assert notes(run(device="cpu", memory=memory), arch) == [
        "memory: what is offloaded from a cpu stays in the same memory"
    ]
    assert notes(run(device="cuda", memory=memory), arch) == []
