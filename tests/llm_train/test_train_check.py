"""Impossible layouts and the equations they are refused with."""

import copy
import json
from pathlib import Path

import pytest

from llm_train.arch import Arch, parse
from llm_train.check import Layout, layout, notes, problems
from llm_train.config import RunConfig
from tiny_archs import EXPERTS, LATENT

GOLDEN = Path(__file__).resolve().parents[1] / "contracts/arch/golden/llama_tiny.json"
# 4 layers, hidden 64, 4 heads, 2 query groups, ffn 128, vocabulary 256, 128 positions.
DENSE = json.loads(GOLDEN.read_text())


def arch(change=lambda document: None) -> Arch:
    document = copy.deepcopy(DENSE)
    change(document)
    return parse(document, where="test")


def with_experts(document, *, experts=6, ffn=100, shared=None):
    document["layers"][0]["feed_forward"] = "moe"
    document["mlp"] = None
    document["moe"] = {**EXPERTS, "experts": experts, "ffn_hidden_size": ffn, "shared": shared}


def with_mla(document):
    document["layers"][0]["mixer"] = "mla"
    document["attention"] = None
    document["mla"] = {
        **LATENT,
        "heads": 6,
        "q_lora_rank": None,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
    }


def config(**sections) -> RunConfig:
    made = {
        "model": {"arch": "a.json"},
        "data": {"train": ["d"]},
        "train": {"max_steps": 10, "seq_length": 32, "global_batch_size": 8},
        "optimizer": {"lr": 1e-3},
        "save": {"path": "run"},
    }
    for name, section in sections.items():
        made[name] = {**made.get(name, {}), **section} if isinstance(section, dict) else section
    return RunConfig.model_validate(made)


def parallel(**sizes) -> RunConfig:
    return config(parallel=sizes)


def test_a_run_that_fits_has_no_problem():
    assert problems(parallel(tp=2, pp=2), arch(), 8) == []


@pytest.mark.parametrize(
    ("run", "world_size", "message"),
    [
        (
            parallel(tp=4, pp=2),
            12,
            "parallel: tp(4) * cp(1) * pp(2) = 8 does not divide world size 12; "
            "wanted tp * cp * pp * dp = world size",
        ),
        (
            config(train={"global_batch_size": 6, "micro_batch_size": 2}),
            2,
            "train: global_batch_size(6) is not a multiple of micro_batch_size(2) * dp(2) = 4",
        ),
        (
            config(train={"seq_length": 33}, parallel={"tp": 2}),
            2,
            "train: seq_length(33) is not a multiple of tp(2): 33 % 2 = 1",
        ),
        (
            parallel(pp=3),
            3,
            "parallel: layers(4) is not a multiple of pp(3); add noop_layers, or say "
            "layers_per_stage",
        ),
        (
            parallel(pp=4, vpp=2),
            4,
            "parallel: layers(4) is not a multiple of pp(4) * vpp(2) = 8; add noop_layers, or say "
            "layers_per_stage",
        ),
        (parallel(vpp=2), 1, "parallel: vpp(2) needs pp > 1, found pp(1)"),
        (
            config(train={"global_batch_size": 3}, parallel={"pp": 2, "vpp": 2}),
            2,
            "parallel.vpp: 3 micro-batches = global_batch_size(3) / (micro_batch_size(1) * dp(1)) "
            "are not a multiple of pp(2)",
        ),
        (
            config(optimizer={"warmup_steps": 11}),
            1,
            "optimizer: warmup_steps(11) > train.max_steps(10)",
        ),
        (
            config(optimizer={"warmup_steps": 5, "decay_steps": 5}),
            1,
            "optimizer: warmup_steps(5) >= decay_steps(5): nothing is left to decay over",
        ),
        (
            config(train={"eval_every": 5}),
            1,
            "train.eval_every(5) needs data: set data.valid or data.valid_fraction",
        ),
        (
            config(
                parallel={"overlap_param_gather": True, "overlap_grad_reduce": True},
                optimizer={"distributed": False},
            ),
            2,
            "parallel.overlap_param_gather needs optimizer.distributed=true",
        ),
        (
            parallel(overlap_param_gather=True),
            2,
            "parallel.overlap_param_gather needs parallel.overlap_grad_reduce=true",
        ),
        (
            parallel(ep=2),
            2,
            "parallel: ep(2) needs a model with experts; this one has none",
        ),
        (
            parallel(etp=2),
            2,
            "parallel: etp(2) needs a model with experts; this one has none",
        ),
    ],
)
def test_what_cannot_run_is_refused_with_its_equation(run, world_size, message):
    assert problems(run, arch(), world_size) == [message]


def test_heads_and_ffn_must_be_shared_out_evenly_over_tp():
    found = problems(config(train={"seq_length": 33}, parallel={"tp": 3}), arch(), 3)
    assert found == [
        "parallel: attention heads(4) is not a multiple of tp(3): 4 % 3 = 1",
        "parallel: query_groups(2) is neither a multiple nor a divisor of tp(3) "
        "(tp(3) % query_groups(2) = 1)",
        "parallel: mlp ffn_hidden_size(128) is not a multiple of tp(3): 128 % 3 = 2",
    ]


def test_query_groups_may_be_fewer_than_tp():
    """megatron-core 0.16.1 gathers and re-cuts q, k and v when query_groups < tp."""
    assert problems(parallel(tp=4), arch(), 4) == []


def test_query_group_rule_is_megatron_cores_own():
    from megatron.core.transformer.transformer_config import TransformerConfig

    def refused_by_megatron(groups: int, tp: int) -> bool:
        try:
            TransformerConfig(
                num_layers=1,
                hidden_size=96,
                num_attention_heads=12,
                num_query_groups=groups,
                tensor_model_parallel_size=tp,
            )
        except ValueError:
            return True
        return False

    def refused_by_us(groups: int, tp: int) -> bool:
        def change(document):
            document["attention"].update(heads=12, query_groups=groups)
            document["mlp"]["ffn_hidden_size"] = 96

        run = config(train={"seq_length": 48, "global_batch_size": 48}, parallel={"tp": tp})
        return problems(run, arch(change), tp) != []

    cases = [(groups, tp) for groups in (1, 2, 3, 4, 6, 12) for tp in (1, 2, 3, 4, 6, 12)]
    assert [refused_by_us(*case) for case in cases] == [
        refused_by_megatron(*case) for case in cases
    ]


def test_without_sequence_parallel_the_sequence_need_not_divide():
    run = config(train={"seq_length": 33}, parallel={"tp": 2, "sequence_parallel": False})
    assert problems(run, arch(), 2) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_experts, "moe layers under tp(2) need sequence_parallel=true"),
    ],
)
def test_layers_whose_gradients_would_be_wrong_without_sequence_parallel_are_refused(change, words):
    found = problems(parallel(tp=2, sequence_parallel=False), arch(change), 2)
    assert len(found) == 1
    assert words in found[0]
    assert problems(parallel(tp=2), arch(change), 2) == []


def test_mla_heads_must_be_shared_out_evenly():
    found = problems(config(train={"seq_length": 32}, parallel={"tp": 4}), arch(with_mla), 4)
    assert found == ["parallel: mla heads(6) is not a multiple of tp(4): 6 % 4 = 2"]


def test_experts_must_be_shared_out_evenly():
    run = config(parallel={"ep": 4, "etp": 1})
    assert problems(run, arch(with_experts), 4) == [
        "parallel: moe experts(6) is not a multiple of ep(4): 6 % 4 = 2"
    ]
    run = config(train={"global_batch_size": 24}, parallel={"ep": 2, "etp": 3})
    assert problems(run, arch(with_experts), 8) == [
        "parallel: expert ffn_hidden_size(100) is not a multiple of etp(3): 100 % 3 = 1",
        "parallel: ep(2) * etp(3) * pp(1) = 6 does not divide world size 8",
    ]


def test_a_shared_expert_is_cut_by_tp():
    def change(document):
        with_experts(document, shared={"ffn_hidden_size": 99, "gated": False})

    assert problems(parallel(tp=2), arch(change), 2) == [
        "parallel: shared expert ffn_hidden_size(99) is not a multiple of tp(2): 99 % 2 = 1"
    ]


def test_a_sequence_beyond_learned_positions_is_refused_and_beyond_rotary_ones_noted():
    run = config(train={"seq_length": 256})

    def learned(document):
        document["position"] = {"kind": "learned"}

    assert problems(run, arch(learned), 1) == [
        "train: seq_length(256) > max_position_embeddings(128), and the model has one learned "
        "vector per position"
    ]
    assert problems(run, arch(), 1) == []
    assert notes(run, arch()) == [
        "train.seq_length(256) is beyond the model's max_position_embeddings(128)"
    ]


def test_virtual_stages_are_noted_to_use_overlapped_calls():
    assert "overlapped point-to-point" in notes(parallel(pp=2, vpp=2), arch())[0]


def test_settings_without_effect_are_noted():
    assert notes(parallel(sequence_parallel=True), arch()) == [
        "parallel.sequence_parallel has no effect with tp=1"
    ]
    assert notes(config(device="cpu", train={"precision": "bf16"}), arch()) == [
        "train.precision=bf16 is seldom faster than fp32 on a cpu"
    ]


def test_a_layout_is_counted_as_by_hand():
    """16 ranks: tp 2 * pp 2 leaves dp 4; ep 4 * etp 1 * pp 2 leaves 2; 24 / (3 * 4) = 2."""
    run = config(
        train={"global_batch_size": 24, "micro_batch_size": 3},
        parallel={"tp": 2, "pp": 2, "ep": 4},
    )
    assert layout(run, 16) == Layout(
        world_size=16, dp=4, expert_dp=2, micro_batches=2, tokens_per_step=24 * 32
    )
