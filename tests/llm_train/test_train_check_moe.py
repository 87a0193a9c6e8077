"""What cannot be done with experts, and the equation it is refused with."""

import json
from pathlib import Path

import pytest

from llm_train.arch import parse
from llm_train.check import notes, problems
from llm_train.config import RunConfig
from tiny_archs import EXPERTS as TINY
from tiny_archs import ROUTER

GOLDEN = Path(__file__).resolve().parents[1] / "contracts/arch/golden/llama_tiny.json"
# 4 layers, hidden 64, 4 heads, 2 query groups.
DENSE = json.loads(GOLDEN.read_text())
EXPERTS = {**TINY, "experts": 6, "ffn_hidden_size": 96}


def dense():
    return parse(DENSE, where="test")


def experts(router=None, **changes):
    """An arch whose layers all have 6 experts of top-2."""
    layers = [{**DENSE["layers"][0], "feed_forward": "moe"}]
    moe = {**EXPERTS, **changes, "router": {**ROUTER, **(router or {})}}
    return parse({**DENSE, "layers": layers, "mlp": None, "moe": moe}, where="test")


def config(train=None, **sections):
    made = {
        "model": {"arch": "a.json"},
        "data": {"train": ["d"]},
        "train": {"max_steps": 10, "seq_length": 32, "global_batch_size": 8, **(train or {})},
        "optimizer": {"lr": 1e-3},
        "save": {"path": "run"},
    }
    return RunConfig.model_validate({**made, **sections})


SHARED = {"ffn_hidden_size": 32, "gated": False}


def moe(precision="fp32", **section):
    return config(moe=section, train={"precision": precision})


@pytest.mark.parametrize(
    ("run", "facts", "message"),
    [
        (
            moe(aux_loss_coeff=0.1),
            dense(),
            "moe.aux_loss_coeff needs a model with experts; this one has none",
        ),
        (
            moe(pad_to_capacity=True),
            experts(),
            "moe.pad_to_capacity needs moe.capacity_factor",
        ),
        (
            moe(pad_to_capacity=True, capacity_factor=4.0),
            experts(),
            "moe.pad_to_capacity: top_k(2) * capacity_factor(4.0) = 8 > experts(6): a capacity "
            "beyond all tokens cannot be filled",
        ),
        (
            moe(bias_update_rate=0.01),
            experts(),
            "moe.bias_update_rate needs a router with expert biases; this model's has none",
        ),
        (
            moe(shared_expert_overlap=True),
            experts(),
            "moe.shared_expert_overlap needs a shared expert; this model has none",
        ),
        (
            moe(shared_expert_overlap=True, dispatcher="allgather"),
            experts(shared=SHARED),
            "moe.shared_expert_overlap needs dispatcher=alltoall, found allgather",
        ),
        (
            moe(shared_expert_overlap=True),
            experts(shared=SHARED, clamp=7.0),
            "moe.shared_expert_overlap computes no clamp(7.0) and glu_offset(0.0)",
        ),
        (
            moe(precision="bf16", grouped_gemm=True),
            experts(ffn_hidden_size=100),
            "moe.grouped_gemm: bytes of expert ffn_hidden_size(100) / etp(1) in bf16(200) is not a "
            "multiple of 16: 200 % 16 = 8",
        ),
    ],
)
def test_what_experts_cannot_do_is_refused(run, facts, message):
    assert problems(run, facts, 1) == [message]


def test_biased_experts_are_whole_or_cut_as_the_rest():
    facts = experts(bias=True)
    assert problems(config(parallel={"tp": 2, "etp": 2}), facts, 2) == []
    assert problems(config(parallel={"tp": 2}), facts, 2) == []
    assert problems(config(parallel={"etp": 2}), facts, 2) == [
        "parallel: etp(2) is neither 1 nor tp(1), and the experts have biases, whose share of the "
        "gradient norm would be counted wrongly"
    ]


def test_what_experts_can_do_is_accepted():
    biased = experts(router={"bias": True, "score": "sigmoid"}, shared=SHARED)
    sections = (
        {"bias_update_rate": 0.01, "shared_expert_overlap": True},
        {"pad_to_capacity": True, "capacity_factor": 3.0, "drop_policy": "position"},
        {"grouped_gemm": True, "dispatcher": "allgather", "z_loss_coeff": 1e-3},
    )
    for section in sections:
        assert problems(moe(precision="bf16", **section), biased, 1) == []


def test_the_product_that_computes_the_experts_is_named():
    named = "moe.grouped_gemm: experts by "
    half, full = moe(precision="bf16", grouped_gemm=True), moe(grouped_gemm=True)
    assert notes(half, experts()) == [
        named + "torch._grouped_mm on cpu and cuda, padded bmm on npu"
    ]
    assert notes(full, experts()) == [named + "padded torch.bmm (torch._grouped_mm takes bf16)"]
    assert "drops other tokens" in notes(moe(capacity_factor=1.0), experts())[0]
