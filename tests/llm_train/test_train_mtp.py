"""Prediction layers: DeepSeek-V3's loss and its gradients, at every layout, in every format."""

import copy
import json
from pathlib import Path

import pytest
import torch

from arch_decoder import decode, predict
from ckpt_zoo import CASES
from fork_ranks import run_ranks
from llm_ckpt.arch import parse_arch
from llm_ckpt.params import expected_params
from llm_ckpt.source import open_source
from tiny_archs import EXPERTS, SIGMOID_ROUTER, latent
from train_curves import each_run, steps_of, tiny_run, train_steps

GOLDEN = Path(__file__).parents[1] / "contracts" / "arch" / "golden"
STEPS = 8
VALUES = ("loss", "mtp_loss", "grad_norm", "aux_loss")
SCALE = 0.7


def _tied(document):
    """Two layers, two prediction layers; the embedding is also the output, and scaled."""
    document |= {"hidden_size": 32, "mtp": {"layers": 2}}
    document["layers"][0]["count"] = 2
    document["scalars"] |= {"embedding": 3.0, "logits": 0.5}
    return document


def _layernorm(document):
    document = _tied(document)
    document["norm"] |= {"kind": "layer", "placement": "sandwich"}
    document["attention"]["qk_norm"] = "none"
    return {**document, "position": {"kind": "learned"}, "embedding_norm": True}


def _latent_experts(document):
    """As DeepSeek-V3: latent attention, experts behind a dense layer, one prediction layer."""
    layer = {**document["layers"][0], "count": 1}
    mlp = {key: document["mlp"][key] for key in ("activation", "gated", "clamp", "glu_offset")}
    shared = {"ffn_hidden_size": 24, "gated": False}
    made = {
        **document,
        "hidden_size": 32,
        "tie_embeddings": False,
        "mtp": {"layers": 1},
        "layers": [layer, {**layer, "feed_forward": "moe"}],
        "moe": {**EXPERTS, **mlp, "shared": shared, "router": SIGMOID_ROUTER},
    }
    return latent(made, heads=2, q_lora_rank=12)


ARCHS = {"tied": _tied, "layernorm": _layernorm, "latent-experts": _latent_experts}
MOE = {"aux_loss_coeff": 0.1, "bias_update_rate": 0.01}


def run_of(name, folder, prefix, *, steps=STEPS, **sections):
    """A run of an architecture of ARCHS, two micro-batches a step, as a document."""
    arch = ARCHS[name](json.loads((GOLDEN / "qwen3_tiny.json").read_text()))
    path = folder / f"{name}.json"
    path.write_text(json.dumps(arch))
    document = tiny_run(path, data=prefix, save=folder)
    document["train"] |= {
        "max_steps": steps,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "mtp_loss_scale": SCALE,
    }
    if arch["moe"]:
        document["moe"] = dict(MOE)
    for section, values in sections.items():
        document[section] = {**document.get(section, {}), **values}
    return document


# layout → ranks, sections of the config, the runs that are trained at it
# One micro-batch a step, where several prove no more: half as many collectives.
ONE = {"micro_batch_size": 4}
LAYOUTS = {
    "tp2-sp": (2, {"parallel": {"tp": 2}}, ("tied", "latent-experts")),
    "tp2-no-sp": (2, {"parallel": {"tp": 2, "sequence_parallel": False}, "train": ONE}, ("tied",)),
    "pp2": (2, {"parallel": {"pp": 2}}, ("tied", "latent-experts")),
    # The last chunk holds prediction layers alone, and the final norm lies before it.
    "pp2-vpp2-noops": (2, {"parallel": {"pp": 2, "vpp": 2, "noop_layers": [1, 3]}}, ("tied",)),
    "tp2-pp2": (4, {"parallel": {"tp": 2, "pp": 2}}, ("tied",)),
    "dp2": (2, {}, ("tied",)),
    # Tokens look ahead from one rank's share of a sequence into another's.
    "cp2": (2, {"parallel": {"cp": 2}, "train": ONE}, ("tied", "tied-packed")),
    "ep2": (2, {"parallel": {"ep": 2}}, ("latent-experts",)),
}
CHANGES = {"tied-packed": {"data": {"reset_documents": True}}}


@pytest.fixture(scope="module")
def curves(toy_prefix, tmp_path_factory):
    """`curves(layout, ranks, sections, names)`: the steps of each run, trained once."""
    found = {}

    def train_once(layout, world_size, sections, names):
        if layout not in found:
            folder = tmp_path_factory.mktemp(layout)
            documents = {
                name: run_of(
                    name.removesuffix("-packed"),
                    folder,
                    toy_prefix,
                    **sections,
                    **CHANGES.get(name, {}),
                )
                for name in names
            }
            found[layout] = train_steps(documents, world_size, VALUES)
        return found[layout]

    return train_once


@pytest.mark.parametrize(
    ("layout", "name"), [(layout, name) for layout in LAYOUTS for name in LAYOUTS[layout][2]]
)
def test_prediction_layers_train_like_one_process(layout, name, curves):
    wanted = curves("alone", 1, {}, ("tied", "tied-packed", "latent-experts"))[name]
    found = curves(layout, *LAYOUTS[layout])[name]
    assert len(found) == len(wanted) == STEPS
    for step, (one, two) in enumerate(zip(found, wanted, strict=True), start=1):
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4), step
        for value in ("loss", "mtp_loss", "aux_loss"):
            assert one[value] == pytest.approx(two[value], abs=1e-5), (value, step)


def one_step(document):
    """Weights before a step, their gradients in it, its batch, and what it reports."""

    def look(training, splits):
        from llm_train.model.names import named_tensors

        (chunk,) = training.chunks
        random = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, norm in chunk.named_parameters():
                if norm.dim() == 1:  # as built they are all alike, and could be mistaken
                    norm.add_(torch.randn(norm.shape, generator=random), alpha=0.3)
                assert norm.isfinite().all(), name
        before = {named.name: named.tensor.detach().clone() for named in named_tensors(chunk)}
        batch = [splits.train[index] for index in range(4)]
        steps = steps_of(training, splits, VALUES)
        gradients = {
            named.name: named.tensor.main_grad.clone()
            for named in named_tensors(chunk)
            if isinstance(named.tensor, torch.nn.Parameter)
        }
        return before, gradients, batch, steps[0]

    return run_ranks(lambda _rank: dict(each_run({"it": document}, look))["it"], 1)[0]


def losses_of_a_document(arch, weights, tokens, labels, mask):
    """(sum, number) of the main loss and of each prediction layer's, of one document [T]."""
    depths = min(arch["mtp"]["layers"], len(tokens) - 1)
    read, names, row = weights.__getitem__, list(weights), tokens[None]
    logits = [decode(arch, read, names, row)]
    if depths:
        logits += predict({**arch, "mtp": {"layers": depths}}, read, names, row)
    for depth, found in enumerate(logits):
        losses = torch.nn.functional.cross_entropy(found[0], labels[depth:], reduction="none")
        yield depth, (losses * mask[depth:]).sum(), mask[depth:].sum()


@pytest.mark.parametrize(
    ("name", "is_packed"), [("layernorm", False), ("layernorm", True), ("latent-experts", False)]
)
def test_loss_and_gradients_are_those_of_the_paper(name, is_packed, toy_prefix, tmp_path):
    """2412.19437 (24), (25): main + scale / D · Σ_k (1 / T) Σ_i −log P_k[t_i], by arch_decoder."""
    document = run_of(
        name,
        tmp_path,
        toy_prefix,
        steps=1,
        optimizer={"clip_grad": 0.0, "decay_steps": 8},
        data={"reset_documents": is_packed},
    )
    if "moe" in document:
        document["moe"] = {}
    weights, gradients, batch, reported = one_step(document)
    arch = json.loads(Path(document["model"]["arch"]).read_text())
    for tensor in weights.values():
        tensor.requires_grad_()
    depths = 1 + arch["mtp"]["layers"]
    sums, counts = [torch.tensor(0.0)] * depths, [0.0] * depths
    for sample in batch:
        starts = (sample["position_ids"] == 0).nonzero().flatten().tolist()
        assert is_packed or starts == [0]
        for first, last in zip(starts, [*starts[1:], len(sample["tokens"])], strict=True):
            parts = [sample[key][first:last] for key in ("tokens", "labels", "loss_mask")]
            for depth, total, count in losses_of_a_document(arch, weights, *parts):
                sums[depth] = sums[depth] + total
                counts[depth] += count.item()
    assert not is_packed or counts[0] < 4 * 32
    means = [total.item() / count for total, count in zip(sums, counts, strict=True)]
    assert reported["loss"] == pytest.approx(means[0], abs=1e-5)
    assert reported["mtp_loss"] == pytest.approx(sum(means[1:]) / len(means[1:]), abs=1e-5)
    objective = (sums[0] + SCALE / len(sums[1:]) * sum(sums[1:])) / counts[0]
    objective.backward()
    assert any(key.startswith("mtp.layers.0.transformer_layer.") for key in gradients)
    for key, found in gradients.items():
        wanted = weights[key].grad
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: k + m)


def test_stages_hold_and_save_every_tensor_once_and_the_embedding_on_both(toy_prefix, tmp_path):
    """Tied: the last stage has one copy for its prediction layers and its output."""
    document = run_of("tied", tmp_path, toy_prefix, parallel={"pp": 2})

    def look(training, _splits):
        from megatron.core import parallel_state

        from llm_train.model.names import named_tensors

        (chunk,) = training.chunks
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        metadata = {"dp_cp_group": group, "non_homogeneous_layers": True}
        saved = [key for key in chunk.sharded_state_dict(metadata=metadata) if "_extra" not in key]
        return [named.name for named in named_tensors(chunk)], saved

    stages = run_ranks(lambda _rank: dict(each_run({"it": document}, look))["it"], 2)
    (first, _), (last, _) = stages
    for held, saved in stages:
        assert len(set(held)) == len(held) == len(saved)
    arch = parse_arch(json.loads(Path(document["model"]["arch"]).read_text()), where="test")
    assert {*first, *last} == {param.name for param in expected_params(arch)}
    assert {*first} & {*last} == {"embedding.word_embeddings.weight"}


def test_recomputed_prediction_layers_train_the_same_to_the_bit(toy_prefix, tmp_path):
    base = run_of("latent-experts", tmp_path, toy_prefix, steps=4)
    again = {"full": "full", "selective": {"kind": "selective", "modules": ["layernorm", "moe"]}}
    runs = {name: {**copy.deepcopy(base), "recompute": value} for name, value in again.items()}
    found = train_steps({"plain": base, **runs}, 1, VALUES)
    assert found["full"] == found["plain"]
    assert found["selective"] == found["plain"]


def test_at_scale_0_and_in_evaluation_there_is_the_main_model_alone(toy_prefix, tmp_path):
    """It trains, and is evaluated, as if its arch.json knew of no prediction layers."""
    document = run_of("tied", tmp_path, toy_prefix, steps=3, data={"valid": [str(toy_prefix)]})
    document["train"] |= {"mtp_loss_scale": 0.0, "eval_every": 3, "eval_steps": 1}
    arch = json.loads(Path(document["model"]["arch"]).read_text())
    (tmp_path / "main.json").write_text(json.dumps({**arch, "mtp": None}))
    main = {**document, "model": {**document["model"], "arch": str(tmp_path / "main.json")}}
    found = train_steps({"mtp": document, "main": main}, 1, VALUES)
    assert len(found["mtp"]) == len(found["main"]) == 4
    for one, two in zip(found["mtp"], found["main"], strict=True):
        for name in one.keys() & {"loss", "grad_norm", "eval_loss"}:
            assert one[name] == pytest.approx(two[name], rel=1e-6), name


def runs(world_size, *documents):
    """Train each to the end as the command does; the losses that each wrote."""

    def rank(_rank):
        from llm_train.config_parse import parse
        from llm_train.edge.run import run

        for document in documents:
            run(parse(document, [], "test"))

    run_ranks(rank, world_size)
    files = [Path(document["save"]["path"]) / "metrics.jsonl" for document in documents]
    records = [map(json.loads, file.read_text().splitlines()) for file in files]
    return [[(one["loss"], one["mtp_loss"]) for one in each] for each in records]


def test_weights_come_from_a_folder_and_go_back_into_one(toy_prefix, tmp_path):
    """By two stages; their checkpoint goes on in one process."""
    (case,) = (case for case in CASES if case.id == "deepseek_v3-prediction")
    folder = case.save(tmp_path / "hf")
    document = run_of("tied", tmp_path, toy_prefix, steps=1)
    document["model"] = {"load": str(folder)}
    document["moe"] = {"bias_update_rate": 0.0}
    # Too little to change a weight.
    document["optimizer"] |= {"lr": 1e-30, "warmup_steps": 0, "decay_steps": 8}
    document["parallel"] = {"pp": 2}
    document["save"] = {"path": str(tmp_path / "run"), "hf": True}
    ((first,),) = runs(2, document)
    wanted, written = open_source(folder), open_source(tmp_path / "run" / "hf_0000001")
    assert any(name.startswith("mtp.") for name in wanted.names())
    for source in (written, open_source(tmp_path / "run")):
        assert sorted(source.names()) == sorted(wanted.names())
        for name in wanted.names():
            assert torch.equal(source.read(name).float(), wanted.read(name).float()), name
    document |= {"parallel": {}, "train": {**document["train"], "max_steps": 2}}
    unbroken = {**document, "save": {"path": str(tmp_path / "straight")}}
    resumed, straight = runs(1, document, unbroken)
    assert resumed[0] == first == pytest.approx(straight[0], abs=1e-5)
    assert resumed[1] == pytest.approx(straight[1], abs=1e-5)
