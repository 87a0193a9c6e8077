"""Dropout: who draws with whom, the same again in backward and after a resume, not to evaluate."""

import json
from pathlib import Path

import pytest
import torch

from fork_ranks import run_ranks
from train_curves import each_run, go, train_curves

STEPS = 4
HIDDEN, ATTENTION, BOTH = (
    {"hidden_dropout": 0.25},
    {"attention_dropout": 0.25},
    {"hidden_dropout": 0.25, "attention_dropout": 0.25},
)


@pytest.fixture
def run_of(run_document, tmp_path):
    """`run_of(train, parallel, …)`: a run of four steps of two layers and one that predicts."""
    arch = json.loads(Path(run_document["model"]["arch"]).read_text())
    arch |= {"hidden_size": 32, "layers": [{**arch["layers"][0], "count": 2}]}
    arch |= {"mtp": {"layers": 1}}
    arch["attention"] |= {"head_dim": 8}
    arch["mlp"] |= {"ffn_hidden_size": 48}
    path = tmp_path / "arch.json"
    path.write_text(json.dumps(arch))

    def make(train, parallel=None, **sections):
        sizes = {"max_steps": STEPS, "global_batch_size": 8, "micro_batch_size": 4}
        return {
            **run_document,
            "model": {"arch": str(path), "init_std": 0.1},
            "train": {**run_document["train"], **sizes, **train},
            "optimizer": {"lr": 1e-3, "warmup_steps": 2, "decay_steps": STEPS},
            "parallel": parallel or {},
            **sections,
        }

    return make


def test_ranks_that_hold_the_same_drop_the_same(run_of):
    """Without sequence parallel, cut layers lose what the layers of one process lose."""
    cut = {"tp": 2, "sequence_parallel": False}
    one = train_curves({"it": run_of(HIDDEN), "none": run_of({})}, 1)
    two = train_curves({"it": run_of(HIDDEN, cut)}, 2)["it"]
    assert [loss for loss, _ in two] == pytest.approx([loss for loss, _ in one["it"]], abs=1e-5)
    assert abs(one["it"][0][0] - one["none"][0][0]) > 1e-3


def test_nothing_is_drawn_twice_and_seeds_are_what_counts(run_of):
    runs = {
        "first": run_of(BOTH),
        "again": run_of(BOTH),
        "other": run_of({**BOTH, "seed": 5}),
    }
    found = train_curves(runs, 1)
    assert found["first"] == found["again"]
    assert found["first"] != found["other"]


def draws(document, world_size):
    """By rank: what the first four draws of three modules left."""

    def ones(_module, args):
        """Queries and keys 0, values 1: an output is the share of weights that was kept."""
        query, key, value, *rest = args
        return (query * 0, key * 0, value * 0 + 1, *rest)

    def look(training, splits):
        chunk = training.chunks[0]
        layer, ahead = chunk.decoder.layers[0], chunk.mtp.layers[0].transformer_layer
        watched = {
            "embedding": chunk.embedding.embedding_dropout,
            "attention": layer.self_attention.core_attention,
            "prediction": ahead.self_attention.core_attention,
        }
        found = {name: [] for name in watched}
        for name, module in watched.items():
            if name != "embedding":
                module.register_forward_pre_hook(ones)
            module.register_forward_hook(
                lambda _m, _i, out, name=name: found[name].append(out.detach().clone())
            )
        go(training, splits, None)
        found["embedding"] = [out == 0 for out in found["embedding"]]
        return {name: torch.stack(each[:4]).float() for name, each in found.items()}

    return run_ranks(lambda _rank: dict(each_run({"it": document}, look))["it"], world_size)


# A layout of two ranks, and who draws the same on both.
ALIKE = {
    "slices": ({"tp": 2}, ()),
    "heads": ({"tp": 2, "sequence_parallel": False}, ("embedding",)),
    "samples": ({}, ()),
}


@pytest.mark.parametrize("name", ALIKE)
def test_ranks_with_heads_slices_or_samples_of_their_own_draw_apart(name, run_of):
    parallel, alike = ALIKE[name]
    first, second = draws(run_of(BOTH, parallel), 2)
    for what, drawn in first.items():
        assert torch.equal(drawn, second[what]) == (what in alike), what
        # Of other micro-batches and steps.
        assert all(not torch.equal(drawn[0], later) for later in drawn[1:]), what
        assert drawn.std().item() > 0.05
        wanted = 0.25 if what == "embedding" else 1.0
        assert drawn.mean().item() == pytest.approx(wanted, abs=0.02)


LAYOUTS = {
    "one": (1, {}),
    "tp2-sp": (2, {"tp": 2}),
    "tp2-no-sp": (2, {"tp": 2, "sequence_parallel": False}),
}
AGAIN = {
    "full": {"kind": "full"},
    "block": {"kind": "full", "method": "block", "layers": 1},
    "parts": {"kind": "selective", "modules": ["core_attention", "layernorm", "activation", "mlp"]},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_computed_again_drops_the_same(layout, run_of):
    size, parallel = LAYOUTS[layout]
    runs = {name: run_of(BOTH, parallel, recompute=one) for name, one in AGAIN.items()}
    found = train_curves({"kept": run_of(BOTH, parallel), **runs}, size)
    for name in AGAIN:
        assert found[name] == found["kept"], name


def test_evaluations_drop_nothing(run_of):
    def look(training, splits):
        chunk, tokens = training.chunks[0], splits.train[0]["tokens"][None]
        positions = torch.arange(tokens.shape[1])[None]
        with torch.no_grad():
            in_training = chunk(tokens, positions, None)
            return in_training, chunk.eval()(tokens, positions, None)

    runs = {"dropped": run_of(BOTH), "none": run_of({})}
    found = run_ranks(lambda _rank: dict(each_run(runs, look)), 1)[0]
    assert torch.equal(found["dropped"][1], found["none"][1])
    assert not torch.equal(found["dropped"][0], found["none"][0])


def test_a_resume_goes_on_as_if_nothing_had_been(run_of, tmp_path):
    def losses(name, *steps):
        folder = tmp_path / name
        document = run_of(BOTH, save={"path": str(folder)})

        def rank(_rank):
            from llm_train.config_parse import parse
            from llm_train.edge.run import run

            for last in steps:
                run(parse(document, [f"train.max_steps={last}"], "test"))

        run_ranks(rank, 1)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    assert losses("resumed", 2, STEPS) == losses("straight", STEPS)
