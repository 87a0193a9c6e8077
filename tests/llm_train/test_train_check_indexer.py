"""Rules of sparse-attention indexers, each told with its reason."""

import json
import re
from pathlib import Path

import pytest

from llm_train.arch import parse
from llm_train.check import notes, problems
from llm_train.config import RunConfig
from llm_train.model.fields import UnsupportedArchError, config_fields
from tiny_archs import latent

GOLDEN = Path(__file__).parents[1] / "contracts" / "arch" / "golden"
DENSE = json.loads((GOLDEN / "llama_tiny.json").read_text())
INDEXER = {"heads": 4, "head_dim": 16, "top_k": 8, "rope_interleaved": True}


def config(parallel=None, **train):
    steps = {"max_steps": 1, "seq_length": 32, "global_batch_size": 8}
    return RunConfig.model_validate(
        {
            "model": {"arch": "arch.json"},
            "data": {"train": ["d"]},
            "train": {**steps, **train},
            "optimizer": {"lr": 1e-3, "warmup_steps": 0},
            "parallel": parallel or {},
            "save": {"path": "run"},
            "device": "cpu",
        }
    )


def arch(*, borrowing=(), **indexer):
    facts = {**INDEXER, "borrowing_layers": list(borrowing), **indexer}
    layers = [{**DENSE["layers"][0], "count": 4}]
    return parse(latent({**DENSE, "layers": layers}, indexer=facts), where="test")


@pytest.mark.parametrize("kind", ["ring", "ulysses", "allgather"])
def test_context_parallel_is_refused(kind):
    wanted = (
        "parallel: cp(2) cannot be used with a sparse-attention indexer (mla.indexer): it chooses "
        "among all keys of a sequence, of which a rank has a share"
    )
    assert problems(config({"cp": 2, "cp_kind": kind}), arch(), 2) == [wanted]
    assert problems(config({"tp": 2}), arch(), 2) == []


def test_a_head_that_is_smaller_than_what_turns_of_it_is_refused():
    wanted = "model: indexer head_dim(6) < qk_rope_head_dim(8), the channels of it that turn"
    assert problems(config(), arch(head_dim=6), 1) == [wanted]
    assert problems(config(), arch(head_dim=8), 1) == []


@pytest.mark.parametrize(
    ("parallel", "borrowing", "found"),
    [
        ({"pp": 2}, [1, 2], (2, "stage 1", 1, "stage 0")),
        ({"pp": 2}, [1, 3], None),
        ({"pp": 2, "layers_per_stage": [3, 1]}, [1, 2], None),
        # A chunk that follows on the same stage is another chunk.
        ({"pp": 2, "vpp": 2}, [2], (2, "stage 0, chunk 1", 1, "stage 1, chunk 0")),
    ],
)
def test_what_is_borrowed_from_another_chunk_is_refused(parallel, borrowing, found):
    wanted = []
    if found is not None:
        layer, place, lender, its_place = found
        wanted = [
            f"parallel: layer {layer} ({place}) takes the choice of keys of layer {lender} "
            f"({its_place}), and stages exchange hidden states alone: layers_per_stage must keep "
            "both together"
        ]
    assert problems(config(parallel), arch(borrowing=borrowing), 2) == wanted


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mixer": "none"}, "mla.indexer.borrowing_layers with layers.mixer=none"),
        ({"window": 4}, "mla.indexer with layers.window"),
    ],
)
def test_what_no_layer_could_be_lent_is_refused_by_name(change, named):
    document = arch(borrowing=[1]).model_dump(mode="json")
    document["layers"] += [{**document["layers"][0], "count": 1, **change}]
    with pytest.raises(UnsupportedArchError, match=re.escape(named)):
        config_fields(parse(document, where="test"))


def test_a_coefficient_without_indexers_is_noted():
    wanted = "train.indexer_loss_coeff has no effect: the model has no indexers (mla.indexer)"
    dense = parse(DENSE, where="test")
    assert wanted in notes(config(indexer_loss_coeff=0.3), dense)
    assert wanted not in notes(config(indexer_loss_coeff=0.3), arch())
    assert wanted not in notes(config(), dense)
