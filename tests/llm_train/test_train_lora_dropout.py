"""Dropout of adapters: the same again in backward, by the seed, with whom a rank has its input."""

import json
from pathlib import Path

import pytest
import torch

from fork_ranks import run_ranks
from sft_data import make_chats, write_packed, write_samples
from tiny_archs import EXPERTS
from train_curves import each_run, go, train_curves

GOLDEN = Path(__file__).parents[1] / "contracts" / "arch" / "golden"
LINEARS = ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]


@pytest.fixture
def run_of(tmp_path):
    """`run_of(lora, …)`: a run of three steps of a dense layer and one of experts."""
    arch = json.loads((GOLDEN / "qwen3_tiny.json").read_text())
    layer = arch["layers"][0]
    arch["layers"] = [{**layer, "count": 1}, {**layer, "count": 1, "feed_forward": "moe"}]
    arch["moe"] = {**EXPERTS, "ffn_hidden_size": 64}
    path = tmp_path / "arch.json"
    path.write_text(json.dumps(arch))
    data = write_samples(tmp_path / "data", make_chats(12))

    def make(lora, **sections):
        made = {
            "stage": "sft",
            "model": {"arch": str(path), "init_std": 0.1},
            "data": {"train": [str(data)]},
            "train": {
                "max_steps": 3,
                "seq_length": 48,
                "global_batch_size": 8,
                "micro_batch_size": 2,
            },
            "optimizer": {"lr": 1e-2},
            "lora": {"target_modules": LINEARS, "rank": 4, "dropout": 0.25, **lora},
            "save": {"path": str(tmp_path / "run")},
            "device": "cpu",
        }
        for section, keys in sections.items():
            made[section] = {**made.get(section, {}), **keys}
        return made

    return make


AGAIN = {
    "full": {"kind": "full"},
    "parts": {"kind": "selective", "modules": ["core_attention", "layernorm", "moe", "mlp"]},
    "activation": {"kind": "selective", "modules": ["activation"]},
}
LAYOUTS = {
    "one": (1, {}),
    "tp2-sp": (2, {"tp": 2}),
    "tp2-etp2": (2, {"tp": 2, "etp": 2}),
    "ep2": (2, {"ep": 2}),
}


@pytest.mark.parametrize("quantize", [None, "nf4"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_computed_again_drops_the_same(layout, quantize, run_of):
    size, parallel = LAYOUTS[layout]
    lora = {"quantize": quantize}
    runs = {name: run_of(lora, parallel=parallel, recompute=one) for name, one in AGAIN.items()}
    found = train_curves({"kept": run_of(lora, parallel=parallel), **runs}, size)
    for name in AGAIN:
        assert found[name] == found["kept"], name


def test_seeds_and_shares_are_what_counts(run_of):
    runs = {
        "first": run_of({}),
        "again": run_of({}),
        "other share": run_of({"dropout": 0.5}),
        "none": run_of({"dropout": 0.0}),
    }
    found = train_curves(runs, 1)
    assert found["first"] == found["again"]
    assert len({str(curve) for curve in found.values()}) == 3
    # B is zero at first: no output of an adapter is there to be dropped.
    assert len({curve[0][0] for curve in found.values()}) == 1


def drops(document, world_size):
    """By rank: of each adapter, what the first three passes saw and where it was dropped."""

    def look(training, splits):
        from llm_train.model.lora.adapter import Adapter, ExpertsAdapter

        found = {}
        dropout = torch.nn.functional.dropout

        def watched(x, share, *rest):
            out = dropout(x, share, *rest)
            if share == 0.25:
                found.setdefault(at[-1], []).append((x.detach().clone(), (out == 0) & (x != 0)))
            return out

        at = []
        for name, module in training.chunks[0].named_modules():
            if isinstance(module, Adapter | ExpertsAdapter):
                module.register_forward_pre_hook(lambda *_, name=name: at.append(name))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.functional, "dropout", watched)
            go(training, splits, None)
        return {name: each[:3] for name, each in found.items()}

    return run_ranks(lambda _rank: dict(each_run({"it": document}, look))["it"], world_size)


# A layout of two ranks, and which adapters have the same input on both.
ALIKE = {
    "slices": ({"tp": 2}, set()),
    "samples": ({}, set()),
    "cut experts": ({"tp": 2, "etp": 2}, {"experts.adapters.linear_fc1"}),
    "experts cut over samples": ({"etp": 2}, {"experts.adapters.linear_fc1"}),
}


@pytest.mark.parametrize("name", ALIKE)
def test_ranks_drop_alike_where_they_have_the_same_input_and_apart_elsewhere(name, run_of):
    parallel, alike = ALIKE[name]
    first, second = drops(run_of({}, parallel=parallel), 2)
    assert first.keys() == second.keys()
    for where, passes in first.items():
        is_alike = any(where.endswith(one) for one in alike)
        for (x, mask), (other_x, other_mask) in zip(passes, second[where], strict=True):
            if is_alike:
                torch.testing.assert_close(x, other_x)
            assert torch.equal(mask, other_mask) == is_alike, where
            assert mask.float().mean().item() == pytest.approx(0.25, abs=0.05)
        assert not torch.equal(passes[0][1], passes[1][1]), where


def test_cut_layers_drop_what_those_of_one_process_do(tmp_path, run_of):
    """Without sequence parallel, of linears that are cut by outputs: the same tokens on both."""
    lora = {"target_modules": ["linear_qkv", "linear_fc1"]}
    document = run_of(lora)
    document["model"]["arch"] = str(GOLDEN / "qwen3_tiny.json")
    one = train_curves({"it": document}, 1)["it"]
    cut = {**document, "parallel": {"tp": 2, "sequence_parallel": False}}
    two = train_curves({"it": cut}, 2)["it"]
    assert [loss for loss, _ in two] == pytest.approx([loss for loss, _ in one], abs=1e-5)
    plain = {**document, "lora": {**document["lora"], "dropout": 0.0}}
    none = train_curves({"it": plain}, 1)["it"]
    assert abs(one[-1][0] - none[-1][0]) > 1e-4


def test_evaluations_drop_nothing(run_of):
    def look(training, splits):
        (chunk,) = training.chunks
        go(training, splits, None)  # B is zero before
        tokens = splits.train[0]["tokens"][None]
        positions = torch.arange(tokens.shape[1])[None]
        with torch.no_grad():
            twice = [chunk.train()(tokens, positions, None) for _ in range(2)]
            still = [chunk.eval()(tokens, positions, None) for _ in range(2)]
        return twice, still

    twice, still = run_ranks(lambda _rank: dict(each_run({"it": run_of({})}, look))["it"], 1)[0]
    assert not torch.equal(*twice)
    assert torch.equal(*still)


RESUMED = {
    "full": None,
    "lora": {"dropout": 0.25},
    "qlora": {"dropout": 0.25, "quantize": "nf4"},
}


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("kind", RESUMED)
def test_a_resume_goes_on_to_the_last_bit(kind, is_packed, run_of, tmp_path):
    """Over shuffled datasets with weights, a held-out share and noise on embeddings."""
    data = [tmp_path / "one", tmp_path / "two"]
    for prefix, count in zip(data, (14, 9), strict=True):
        if is_packed:
            write_packed(prefix, make_chats(count, seed=count), seq_length=48)
        else:
            write_samples(prefix, make_chats(count, seed=count))

    def losses(name, *steps):
        document = run_of(
            RESUMED[kind] or {},
            data={"train": list(map(str, data)), "weights": [3, 1], "valid_fraction": 0.2},
            train={"eval_every": 2, "eval_steps": 1, "max_steps": 4, "global_batch_size": 4},
            sft={"neftune_alpha": 5.0},
            optimizer={"decay_steps": 4, "lr_scales": {"*.linear_qkv.*": 0.5}},
            save={"path": str(tmp_path / name)},
        )
        document["model"]["arch"] = str(GOLDEN / "qwen3_tiny.json")
        if RESUMED[kind] is None:
            del document["lora"]

        def rank(_rank):
            from llm_train.config_parse import parse
            from llm_train.edge.run import run

            for last in steps:
                run(parse(document, [f"train.max_steps={last}"], "test"))

        run_ranks(rank, 1)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [
            {key: one.get(key) for key in ("loss", "grad_norm", "eval_loss")}
            for one in map(json.loads, lines)
        ]

    assert losses("resumed", 2, 3, 4) == losses("straight", 4)
