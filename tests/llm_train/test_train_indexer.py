"""Sparse-attention indexers: trained at every layout, and by the loss of DeepSeek's paper."""

import json
from pathlib import Path

import pytest
import torch

import arch_decoder
from arch_decoder.latent import index_scores, keys_and_values, mla, queries
from ckpt_zoo import CASES
from fork_ranks import RankError, run_ranks
from llm_ckpt.edge.convert import Request
from llm_ckpt.edge.convert import run as convert
from llm_ckpt.edge.open import CheckpointOpener
from llm_ckpt.placement import Grid
from llm_ckpt.plan import Target
from llm_ckpt.source import open_source
from tiny_archs import latent
from train_curves import each_run, steps_of, tiny_run, train_steps

GOLDEN = Path(__file__).parents[1] / "contracts" / "arch" / "golden"
STEPS = 8
SCALE = 0.5
TOP_K = 20
PARTS = ["layernorm", "core_attention", "mla_up_proj"]


def _sparse(document, *, layers, **indexer):
    """Latent attention whose queries see 20 of up to 32 keys."""
    # With few heads a score is often 0, and which of equal ones is chosen depends on the row.
    facts = {"heads": 16, "head_dim": 12, "top_k": TOP_K, **indexer}
    document |= {"hidden_size": 32, "tie_embeddings": False}
    document["layers"][0]["count"] = layers
    return latent(document, heads=2, q_lora_rank=12, indexer=facts)


ARCHS = {
    "each": lambda d: _sparse(d, layers=2, rope_interleaved=False, borrowing_layers=[]),
    # As GLM-5: every second layer borrows, a prediction layer has its own.
    "borrowing": lambda d: {
        **_sparse(d, layers=4, rope_interleaved=True, borrowing_layers=[1, 3]),
        "mtp": {"layers": 1},
    },
}
# run → its architecture and sections of the config
RUNS = {
    "frozen": ("each", {}),
    "packed": ("each", {"train": {"indexer_loss_coeff": SCALE}, "data": {"reset_documents": True}}),
    "borrowing": ("borrowing", {"train": {"indexer_loss_coeff": SCALE}}),
}


def run_of(name, folder, prefix, **sections):
    """A run of RUNS, one micro-batch a step, as a document."""
    kind, own = RUNS[name]
    arch = ARCHS[kind](json.loads((GOLDEN / "qwen3_tiny.json").read_text()))
    path = folder / f"{kind}.json"
    path.write_text(json.dumps(arch))
    document = tiny_run(path, data=prefix, save=folder)
    document["train"] |= {"max_steps": STEPS, "global_batch_size": 4, "micro_batch_size": 4}
    for changes in (own, sections):
        for section, values in changes.items():
            document[section] = {**document.get(section, {}), **values}
    return document


VALUES = ("loss", "mtp_loss", "indexer_loss", "grad_norm")

# layout → ranks, sections of the config, the runs that are trained at it
LAYOUTS = {
    "tp2-sp": (2, {"parallel": {"tp": 2}}, ("frozen", "borrowing")),
    "tp2-no-sp": (2, {"parallel": {"tp": 2, "sequence_parallel": False}}, ("packed",)),
    "pp2": (2, {"parallel": {"pp": 2}}, ("borrowing",)),
    # What has no gradient must not be waited for.
    "dp2-overlap": (
        2,
        {"parallel": {"overlap_grad_reduce": True}, "train": {"micro_batch_size": 2}},
        ("frozen",),
    ),
}


@pytest.fixture(scope="module")
def curves(toy_prefix, tmp_path_factory):
    """`curves(layout, ranks, sections, names)`: the steps of each run, trained once."""
    found = {}

    def train_once(layout, world_size, sections, names):
        if layout not in found:
            folder = tmp_path_factory.mktemp(layout)
            documents = {}
            for name in names:
                both = {k: {**RUNS[name][1].get(k, {}), **v} for k, v in sections.items()}
                documents[name] = run_of(name, folder, toy_prefix, **both)
            found[layout] = train_steps(documents, world_size, VALUES)
        return found[layout]

    return train_once


@pytest.mark.parametrize(
    ("layout", "name"), [(layout, name) for layout in LAYOUTS for name in LAYOUTS[layout][2]]
)
def test_a_layout_trains_like_one_process(layout, name, curves):
    wanted = curves("alone", 1, {}, tuple(RUNS))[name]
    found = curves(layout, *LAYOUTS[layout])[name]
    assert len(found) == len(wanted) == STEPS
    assert (wanted[0]["indexer_loss"] is None) == (name == "frozen")
    for step, (one, two) in enumerate(zip(found, wanted, strict=True), start=1):
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4), step
        for value in ("loss", "mtp_loss", "indexer_loss"):
            assert one[value] == pytest.approx(two[value], abs=1e-5), (value, step)


def test_recomputed_layers_choose_and_learn_the_same_to_the_bit(toy_prefix, tmp_path):
    base = run_of("borrowing", tmp_path, toy_prefix, train={"max_steps": 4})
    again = {"full": "full", "selective": {"kind": "selective", "modules": PARTS}}
    runs = {name: {**base, "recompute": value} for name, value in again.items()}
    found = train_steps({"plain": base, **runs}, 1, VALUES)
    assert found["full"] == found["plain"]
    assert found["selective"] == found["plain"]


def test_a_frozen_indexer_stays_as_it_is(toy_prefix, tmp_path):
    """No weight decay either."""

    def look(training, splits):
        (chunk,) = training.chunks
        before = {name: one.detach().clone() for name, one in chunk.named_parameters()}
        steps_of(training, splits, VALUES)
        return {n: torch.equal(one, before[n]) for n, one in chunk.named_parameters()}

    document = run_of(
        "frozen", tmp_path, toy_prefix, train={"max_steps": 2}, optimizer={"decay_steps": 8}
    )
    is_same = run_ranks(lambda _rank: dict(each_run({"it": document}, look))["it"], 1)[0]
    assert {name for name, same in is_same.items() if same} == {
        n for n in is_same if ".indexer." in n
    }


def one_step(document, world_size):
    """Weights before a step, what it reports, its batch, and on each rank its gradients."""

    def look(training, splits):
        from llm_train.model import indexer
        from llm_train.model.names import named_tensors

        # A few queries at a time.
        indexer.ROWS_AT_ONCE = 4 * 16 * 5
        (chunk,) = training.chunks
        random = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for _, norm in chunk.named_parameters():
                if norm.dim() == 1:  # as built they are all alike, and could be mistaken
                    norm.add_(torch.randn(norm.shape, generator=random), alpha=0.3)
        before = {named.name: named.tensor.detach().clone() for named in named_tensors(chunk)}
        batch = [splits.train[index] for index in range(4)]
        (reported,) = steps_of(training, splits, VALUES)
        gradients = {
            named.name: named.tensor.main_grad.clone()
            for named in named_tensors(chunk)
            if named.tensor.requires_grad
        }
        return before, reported, batch, gradients

    return run_ranks(lambda _rank: dict(each_run({"it": document}, look))["it"], world_size)


def divergence(layer, x):
    """Σ over queries t of KL(p_t ‖ softmax of scores over the chosen keys), by hand."""
    facts, (batch, length, _) = layer.document["mla"], x.shape
    latent, q = queries(layer, x.detach(), facts)
    k, _ = keys_and_values(layer, x.detach(), facts)
    width = facts["qk_nope_head_dim"] + facts["qk_rope_head_dim"]
    dots = torch.einsum("bqhd,bkhd->bhqk", q, k).detach() * width**-0.5
    scores = index_scores(layer, x.detach(), latent.detach())
    total = torch.tensor(0.0)
    for row in range(batch):
        for query in range(length):
            seen = layer.shared["selected"][row, query] & (torch.arange(length) <= query)
            target = dots[row, :, query, seen].softmax(-1).mean(0)
            total = (
                total + (target * (target.log() - scores[row, query, seen].log_softmax(-1))).sum()
            )
    return total


@pytest.mark.parametrize("name", ["packed", "borrowing"])
def test_loss_and_gradients_are_those_of_the_paper(name, toy_prefix, tmp_path, monkeypatch):
    """Main loss + coefficient · Σ over two indexers, both summed over tokens."""
    document = run_of(name, tmp_path, toy_prefix)
    document["model"]["init_std"] = 0.4
    document["train"] |= {"max_steps": 1}
    arch = {**json.loads(Path(document["model"]["arch"]).read_text()), "mtp": None}
    Path(document["model"]["arch"]).write_text(json.dumps(arch))
    document["optimizer"] |= {"clip_grad": 0.0, "decay_steps": 8}
    ((weights, reported, batch, gradients),) = one_step(document, 1)
    for tensor in weights.values():
        tensor.requires_grad_()
    divergences = []

    def watched(layer, x):
        out = mla(layer, x)
        if layer.index not in arch["mla"]["indexer"]["borrowing_layers"]:
            divergences.append(divergence(layer, x))
        return out

    monkeypatch.setitem(arch_decoder.MIXERS, "mla", watched)
    total, count = torch.tensor(0.0), 0.0
    for sample in batch:
        starts = (sample["position_ids"] == 0).nonzero().flatten().tolist()
        for first, last in zip(starts, [*starts[1:], len(sample["tokens"])], strict=True):
            tokens, labels, mask = (
                sample[key][first:last] for key in ("tokens", "labels", "loss_mask")
            )
            (logits,) = arch_decoder.decode(arch, weights.get, list(weights), tokens[None])
            losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
            total = total + (losses * mask).sum()
            count += mask.sum().item()
    assert (count < 4 * 32) == (name == "packed")
    wanted = sum(divergences).item() / (2 * 4 * 32)
    assert wanted > 0.1
    assert reported["indexer_loss"] == pytest.approx(wanted, rel=1e-5)
    ((total + SCALE * sum(divergences)) / count).backward()
    assert sum(".indexer." in key for key in gradients) == 2 * 5
    for key, found in gradients.items():
        torch.testing.assert_close(
            found, weights[key].grad, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: k + m
        )


def run_to_the_end(document, world_size):
    """As the command does."""

    def rank(_rank):
        from llm_train.config_parse import parse
        from llm_train.edge.run import run

        run(parse(document, [], "test"))

    run_ranks(rank, world_size)


def test_weights_come_from_a_megatron_folder_and_go_back_to_hugging_face(toy_prefix, tmp_path):
    """Converted by llm-ckpt, trained by too little to change a weight, written at TP2."""
    (case,) = (case for case in CASES if case.id == "glm_moe_dsa-borrowing")
    folder = case.save(tmp_path / "hf")
    opener, megatron = CheckpointOpener(folder, None), tmp_path / "megatron"
    target = Target(layout="v1", grid=Grid(tp=2))
    fingerprint = opener.fingerprint()
    convert(Request(opener=opener, destination=megatron, target=target, fingerprint=fingerprint))
    document = run_of("frozen", tmp_path, toy_prefix, train={"max_steps": 1})
    document["model"], document["moe"] = {"load": str(megatron)}, {"bias_update_rate": 0.0}
    document["optimizer"] |= {"lr": 1e-30, "warmup_steps": 0, "decay_steps": 8}
    document |= {"parallel": {"tp": 2}, "save": {"path": str(tmp_path / "run"), "hf": True}}

    run_to_the_end(document, 2)
    wanted, written = open_source(folder), open_source(tmp_path / "run" / "hf_0000001")
    assert sum(".indexer." in name for name in wanted.names()) == 2 * 5
    for source in (written, open_source(tmp_path / "run")):
        assert sorted(source.names()) == sorted(wanted.names())
        for name in wanted.names():
            assert torch.equal(source.read(name).float(), wanted.read(name).float()), name


def test_learning_indexers_go_on_to_learn_and_frozen_ones_do_not_begin_to(toy_prefix, tmp_path):
    for coefficient in (SCALE, 0.0):
        document = run_of("frozen", tmp_path, toy_prefix, train={"max_steps": 1})
        document["optimizer"] |= {"warmup_steps": 0, "decay_steps": 8}
        document["save"] = {"path": str(tmp_path / f"run-{coefficient}")}
        document["train"]["indexer_loss_coeff"] = coefficient
        run_to_the_end(document, 1)
        document["train"] |= {"max_steps": 2, "indexer_loss_coeff": SCALE}
        if coefficient:
            run_to_the_end(document, 1)
        else:
            wanted = r"no optimizer state of 10 weights .* want it 0 again"
            with pytest.raises(RankError, match=wanted):
                run_to_the_end(document, 1)
    lines = (tmp_path / f"run-{SCALE}" / "metrics.jsonl").read_text().splitlines()
    one, two = (json.loads(line)["indexer_loss"] for line in lines)
    assert 0 < one != two > 0
