"""Rules of context parallelism, each told with its equation."""

import copy
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from llm_train.arch import parse
from llm_train.check import layout, notes, problems
from llm_train.check.context import context
from llm_train.config import ParallelConfig, RunConfig

# 4 layers, hidden 64, 4 heads, 2 query groups.
DENSE = json.loads(
    (Path(__file__).parents[1] / "contracts/arch/golden/llama_tiny.json").read_text()
)


def config(*, seq_length=64, reset_documents=False, device="cpu", **parallel):
    return RunConfig.model_validate(
        {
            "model": {"arch": "arch.json"},
            "data": {"train": ["d"], "reset_documents": reset_documents},
            "train": {"max_steps": 1, "seq_length": seq_length, "global_batch_size": 8},
            "optimizer": {"lr": 1e-3, "warmup_steps": 0},
            "parallel": parallel,
            "save": {"path": "run"},
            "device": device,
        }
    )


def found(world_size, *, change=lambda document: None, **options):
    document = copy.deepcopy(DENSE)
    change(document)
    return problems(config(**options), parse(document, where="test"), world_size)


@pytest.mark.parametrize(
    ("world_size", "parallel"),
    [
        (2, {"cp": 2}),
        (4, {"cp": 4, "cp_kind": "ulysses"}),
        (4, {"cp": 4, "cp_kind": "hybrid", "cp_ulysses": 2}),
        (8, {"cp": 2, "tp": 2, "pp": 2, "cp_kind": "ulysses"}),
        (16, {"cp": 8, "cp_kind": "allgather"}),
    ],
)
def test_possible_layouts_start(world_size, parallel):
    assert found(world_size, **parallel) == []


def test_data_parallel_takes_what_context_parallel_leaves():
    sizes = layout(config(tp=2, cp=2, pp=2), 16)
    assert (sizes.dp, sizes.expert_dp, sizes.micro_batches) == (2, 8, 4)


@pytest.mark.parametrize(
    ("world_size", "options", "problem"),
    [
        (
            6,
            {"tp": 2, "cp": 2},
            "parallel: tp(2) * cp(2) * pp(1) = 4 does not divide world size 6; wanted tp * cp * pp "
            "* dp = world size",
        ),
        (
            2,
            {"cp": 2, "seq_length": 30},
            "train: seq_length(30) is not a multiple of 2 * cp(2) = 4: each rank holds an early "
            "and a late chunk of every sequence",
        ),
        (
            4,
            {"cp": 2, "tp": 2, "seq_length": 36},
            "train: seq_length(36) is not a multiple of 2 * cp(2) * tp(2) = 8: each rank holds an "
            "early and a late chunk of every sequence",
        ),
        (
            8,
            {"cp": 8, "cp_kind": "ulysses"},
            "parallel: attention heads(4) is not a multiple of tp(1) * ulysses degree(8) = 8",
        ),
        (
            8,
            {"tp": 2, "cp": 4, "cp_kind": "ulysses"},
            "parallel: attention heads(4) is not a multiple of tp(2) * ulysses degree(4) = 8",
        ),
        (
            8,
            {"cp": 8, "cp_kind": "hybrid", "cp_ulysses": 3},
            "parallel: cp(8) is not a multiple of cp_ulysses(3): 8 % 3 = 2",
        ),
        (
            4,
            {"cp": 4, "cp_kind": "hybrid", "cp_ulysses": 4},
            "parallel: cp_kind=hybrid needs 1 < cp_ulysses < cp, found cp_ulysses(4), cp(4): that "
            "is cp_kind=ulysses",
        ),
    ],
)
def test_impossible_layouts_are_refused_with_their_equation(world_size, options, problem):
    assert problem in found(world_size, **options)


@pytest.mark.parametrize(
    ("options", "who"),
    [({"cp": 2}, "parallel: cp(2)"), ({"reset_documents": True}, "data: reset_documents")],
)
def test_layers_that_carry_a_state_are_refused(options, who):
    arch = parse(DENSE, where="test")
    layers = tuple(run.model_copy(update={"mixer": "gdn"}) for run in arch.layers)
    arch = arch.model_copy(update={"layers": layers})
    assert list(context(config(**options), arch)) == [
        f"{who} cannot be used with gdn layers: they carry a state from token to token, which "
        "nothing hands over or resets"
    ]


@pytest.mark.parametrize(
    "parallel", [{"cp": 4, "cp_kind": "hybrid"}, {"cp": 4, "cp_kind": "ring", "cp_ulysses": 2}]
)
def test_only_hybrid_has_a_degree(parallel):
    with pytest.raises(ValidationError, match="hybrid needs cp_ulysses, and only hybrid has it"):
        ParallelConfig.model_validate(parallel)


def test_a_kind_without_ranks_is_noted():
    arch = parse(DENSE, where="test")
    assert "parallel.cp_kind has no effect with cp=1" in notes(config(cp_kind="allgather"), arch)


@pytest.mark.parametrize("device", ["npu", "cuda"])
def test_attention_without_a_fused_kernel_is_noted(device):
    arch = parse(DENSE, where="test")
    note = (
        f"parallel.cp and data.reset_documents have no fused attention on device={device} in "
        "train.precision=fp32: scores are computed in fp32"
    )
    assert note in notes(config(device=device, cp=2), arch)
    assert note in notes(config(device=device, reset_documents=True), arch)
    assert note not in notes(config(device=device), arch)
