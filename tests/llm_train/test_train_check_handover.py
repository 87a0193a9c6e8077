"""What shortcut layers, zero experts and shared keys exclude, each told with its reason."""

import json
from pathlib import Path

import pytest

from llm_train.arch import parse
from llm_train.check import problems
from llm_train.config import RunConfig
from llm_train.model.fields import UnsupportedArchError, config_fields
from tiny_archs import EXPERTS, ZERO_ROUTER

GOLDEN = Path(__file__).parents[1] / "contracts/arch/golden"
DENSE = json.loads((GOLDEN / "llama_tiny.json").read_text())
MOE = {**EXPERTS, "router": ZERO_ROUTER}


def run_config(parallel=None, moe=None):
    return RunConfig.model_validate(
        {
            "model": {"arch": "arch.json"},
            "data": {"train": ["d"]},
            "train": {"max_steps": 1, "seq_length": 32, "global_batch_size": 8},
            "optimizer": {"lr": 1e-3, "warmup_steps": 0},
            "parallel": parallel or {},
            "moe": moe or {},
            "save": {"path": "run"},
            "device": "cpu",
        }
    )


def shared(count=2, layers=4, **attention):
    runs = [{**DENSE["layers"][0], "count": layers}]
    facts = {**DENSE["attention"], "shared_kv": count, **attention}
    return parse({**DENSE, "layers": runs, "attention": facts}, where="test")


def shortcut(kinds=("dense_shortcut_moe", "dense") * 2, **changes):
    runs = [{**DENSE["layers"][0], "count": 1, "feed_forward": kind} for kind in kinds]
    return parse({**DENSE, "layers": runs, "moe": MOE, **changes}, where="test")


def test_keys_are_lent_within_a_stage():
    wanted = (
        "parallel: layer 3 (stage 1) takes the keys and values of layer 2 (stage 0), and stages "
        "exchange hidden states alone: layers_per_stage must keep both together"
    )
    assert problems(run_config({"pp": 2, "layers_per_stage": [3, 1]}), shared(), 2) == [wanted]
    assert problems(run_config({"pp": 2}), shared(), 2) == []
    # Groups of three: 0-2 and 3-5.
    assert problems(run_config({"pp": 2}), shared(3, layers=6), 2) == []
    assert len(problems(run_config({"pp": 3}), shared(3, layers=6), 3)) == 2


def test_experts_are_added_within_a_chunk():
    wanted = (
        "parallel: layer 1 (stage 1, chunk 0) takes the experts' output of layer 0 (stage 0, "
        "chunk 0), and stages exchange hidden states alone: layers_per_stage must keep both "
        "together"
    )
    found = problems(run_config({"pp": 2, "vpp": 2}), shortcut(), 2)
    assert found[0] == wanted
    assert len(found) == 2
    # A place where nothing is built lies between no two layers.
    noop = {"pp": 2, "layers_per_stage": [3, 2], "noop_layers": [1]}
    assert problems(run_config(noop), shortcut(), 2) == []


def test_zero_experts_have_no_capacity():
    wanted = (
        "moe.capacity_factor cannot be used with zero_experts(2): a token goes to no fixed number "
        "of experts that a capacity could be a share of"
    )
    assert problems(run_config(moe={"capacity_factor": 1.5}), shortcut(), 1) == [wanted]
    assert problems(run_config(), shortcut(), 1) == []


@pytest.mark.parametrize(
    ("arch", "named"),
    [
        (shortcut(("dense", "dense_shortcut_moe")), "dense_shortcut_moe of the last layer"),
        (
            shortcut(norm={**DENSE["norm"], "placement": "sandwich"}),
            "dense_shortcut_moe with norm.placement=sandwich",
        ),
        (
            shortcut(scalars={**DENSE["scalars"], "residual": 0.5}),
            "dense_shortcut_moe with scalars.residual=0.5",
        ),
        (
            shortcut(attention={**DENSE["attention"], "shared_kv": 2}),
            "attention.shared_kv=2 with layers.feed_forward=dense_shortcut_moe",
        ),
        (shared(qk_norm="full"), "attention.shared_kv=2 with attention.qk_norm=full"),
        (shared(output_gate=True), "attention.shared_kv=2 with attention.output_gate=True"),
        (
            parse(
                {
                    **DENSE,
                    "attention": {**DENSE["attention"], "shared_kv": 2},
                    "layers": [
                        {**DENSE["layers"][0], "count": 1},
                        {**DENSE["layers"][0], "count": 1, "mixer": "none"},
                    ],
                },
                where="test",
            ),
            "attention.shared_kv=2 with layers.mixer=none",
        ),
    ],
)
def test_what_no_family_has_is_refused_by_name(arch, named):
    with pytest.raises(UnsupportedArchError) as refused:
        config_fields(arch)
    assert named in str(refused.value)
