"""Layouts that gated delta nets and Mamba2 cannot have, each told with its equation."""

import json
from pathlib import Path

import pytest

import mixer_archs
from llm_train.arch import parse as parse_arch
from llm_train.check import problems
from llm_train.config_parse import parse

GOLDEN = Path(__file__).parents[1] / "contracts" / "arch" / "golden" / "qwen3_tiny.json"
QWEN3 = json.loads(GOLDEN.read_text())


def found(document, **parallel):
    run = {
        "model": {"arch": "arch.json"},
        "data": {"train": ["data/a"]},
        "train": {"max_steps": 10, "seq_length": 32, "global_batch_size": 8},
        "optimizer": {"lr": 1e-3},
        "save": {"path": "run"},
        "parallel": parallel,
    }
    arch = parse_arch(document, where="arch.json")
    return problems(parse(run, [], "run.yaml"), arch, parallel.get("tp", 1))


def delta_net(**sizes):
    document = mixer_archs.delta_net(QWEN3, has_experts=False)
    return {**document, "gdn": {**document["gdn"], **sizes}}


@pytest.mark.parametrize(
    "document", [delta_net(), mixer_archs.state_space(QWEN3), mixer_archs.only_mamba(QWEN3)]
)
@pytest.mark.parametrize("is_sequence_parallel", [True, False])
def test_two_ranks_are_fine(document, is_sequence_parallel):
    assert found(document, tp=2, sequence_parallel=is_sequence_parallel) == []


@pytest.mark.parametrize(
    ("document", "tp", "words"),
    [
        (
            delta_net(key_heads=4),
            1,
            "model: gdn value_heads(6) is not a multiple of key_heads(4): 6 % 4 = 2",
        ),
        (
            delta_net(key_heads=1),
            2,
            "parallel: gdn key_heads(1) is not a multiple of tp(2): 1 % 2 = 1",
        ),
        (
            mixer_archs.state_space(QWEN3, groups=3),
            1,
            "model: mamba2 heads(8) is not a multiple of groups(3): 8 % 3 = 2",
        ),
        (
            mixer_archs.state_space(QWEN3, groups=1),
            2,
            "parallel: mamba2 groups(1) is not a multiple of tp(2): 1 % 2 = 1",
        ),
    ],
)
def test_heads_that_do_not_divide_are_refused(document, tp, words):
    assert found(document, tp=tp) == [words]
