"""Placements of layers on stages, by hand, and those that are refused with their equations."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from llm_train.arch import parse
from llm_train.check import problems
from llm_train.config import ParallelConfig, RunConfig
from llm_train.placement import Chunk, chunks

GOLDEN = Path(__file__).resolve().parents[1] / "contracts/arch/golden/llama_tiny.json"
FOUR_LAYERS = parse(json.loads(GOLDEN.read_text()), where="test")


def found(**parallel):
    run = {
        "model": {"arch": "a.json"},
        "data": {"train": ["d"]},
        "train": {"max_steps": 10, "seq_length": 32, "global_batch_size": 8},
        "optimizer": {"lr": 1e-3},
        "save": {"path": "run"},
        "parallel": parallel,
    }
    return problems(RunConfig.model_validate(run), FOUR_LAYERS, parallel.get("pp", 1))


@pytest.mark.parametrize(
    "parallel",
    [
        {"pp": 2, "layers_per_stage": [3, 1]},
        {"pp": 2, "layers_per_stage": [0, 4]},
        {"pp": 2, "vpp": 2, "layers_per_stage": [2, 0, 1, 1]},
        {"pp": 3, "noop_layers": [0, 5]},
        {"pp": 2, "layers_per_stage": [4, 1], "noop_layers": [4]},
        {"noop_layers": [2]},
    ],
)
def test_placements_that_fit_have_no_problem(parallel):
    assert found(**parallel) == []


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        (
            {"pp": 2, "layers_per_stage": [3, 2]},
            "parallel.layers_per_stage: 3 + 2 = 5, want layers(4) + noop_layers(0) = 4",
        ),
        (
            {"pp": 2, "layers_per_stage": [2, 2], "noop_layers": [0]},
            "parallel.layers_per_stage: 2 + 2 = 4, want layers(4) + noop_layers(1) = 5",
        ),
        (
            {"pp": 2, "layers_per_stage": [2, 1, 1]},
            "parallel.layers_per_stage has 3 numbers, want one for each of pp(2)",
        ),
        (
            {"pp": 2, "vpp": 2, "layers_per_stage": [2, 2]},
            "parallel.layers_per_stage has 2 numbers, want one for each of pp(2) * vpp(2) = 4",
        ),
        (
            {"pp": 3, "noop_layers": [0, 6]},
            "parallel.noop_layers: place 6 is not one of 0 to 5 (layers(4) + noop_layers(2) = 6)",
        ),
        (
            {"pp": 2, "noop_layers": [0]},
            "parallel: layers(4) + noop_layers(1) = 5 is not a multiple of pp(2); add noop_layers, "
            "or say layers_per_stage",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_equation(parallel, message):
    assert found(**parallel) == [message]


@pytest.mark.parametrize("places", [[2, 1], [1, 1]])
def test_noops_must_rise(places):
    message = f"noop_layers want rising places: {places[0]} stands before {places[1]}"
    with pytest.raises(ValidationError, match=message):
        ParallelConfig(pp=2, noop_layers=tuple(places))


def test_chunks_are_in_order_of_depth_and_count_real_layers():
    """6 places, the second empty: stage 0 runs 0 and then 2, 3; stage 1 nothing and then 4."""
    parallel = ParallelConfig(pp=2, vpp=2, layers_per_stage=(2, 0, 3, 1), noop_layers=(1,))
    assert chunks(parallel, 5) == (
        Chunk(stage=0, chunk=0, places=(0, None)),
        Chunk(stage=1, chunk=0, places=()),
        Chunk(stage=0, chunk=1, places=(1, 2, 3)),
        Chunk(stage=1, chunk=1, places=(4,)),
    )


def test_layers_are_shared_out_evenly_unless_told():
    assert [chunk.places for chunk in chunks(ParallelConfig(pp=2, noop_layers=(5,)), 5)] == [
        (0, 1, 2),
        (3, 4, None),
    ]
