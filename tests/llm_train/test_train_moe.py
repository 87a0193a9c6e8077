"""Experts train alike at every layout, dispatcher and kernel, balanced as their formulas say."""

import copy
import json
from pathlib import Path

import pytest
import torch

from fork_ranks import run_ranks
from tiny_archs import EXPERTS, ROUTER, SIGMOID_ROUTER
from train_curves import each_run, go, steps_of, train_steps

STEPS = 20
FEW = 8  # where the layout is proved by another model
LOSSES = ("loss", "aux_loss", "seq_aux_loss", "z_loss")
VALUES = (*LOSSES, "grad_norm")

# As DeepSeek-V3's, and as gpt-oss's, each behind a dense layer.
BALANCED = {
    **EXPERTS,
    "experts": 8,
    "shared": {"ffn_hidden_size": 24, "gated": True},
    "router": {**SIGMOID_ROUTER, "groups": 2, "top_groups": 1},
}
BIASED = {
    **EXPERTS,
    "experts": 8,
    "bias": True,
    "activation": "quick_gelu",
    "clamp": 0.5,
    "glu_offset": 1.0,
    "router": {**ROUTER, "linear_bias": True},
}
# Weights so large that a loss that is off shows in the training loss.
BALANCE = {
    "aux_loss_coeff": 0.1,
    "seq_aux_loss_coeff": 0.1,
    "z_loss_coeff": 0.1,
    "bias_update_rate": 0.01,
}


@pytest.fixture
def moe_run(run_document, tmp_path):
    """`moe_run(moe facts)`: a run of 20 steps of two tiny layers, dense and moe."""

    def make(moe, **train):
        arch = json.loads(Path(run_document["model"]["arch"]).read_text())
        layer = {**arch["layers"][0], "count": 1}
        mlp = {key: moe[key] for key in ("activation", "gated", "clamp", "glu_offset")}
        arch |= {
            "hidden_size": 32,
            "layers": [layer, {**layer, "feed_forward": "moe"}],
            "moe": moe,
            "mlp": {**arch["mlp"], **mlp, "ffn_hidden_size": 48, "bias": moe["bias"]},
        }
        path = tmp_path / "moe.json"
        path.write_text(json.dumps(arch))
        document = copy.deepcopy(run_document)
        document["model"]["arch"] = str(path)
        sizes = {"max_steps": STEPS, "global_batch_size": 4, "micro_batch_size": 2}
        document["train"] |= {**sizes, **train}
        return document

    return make


def train(document, world_size, parallel, sections):
    """The steps of one run for each moe section, on the same ranks."""
    runs = {
        name: {**document, "parallel": parallel, "moe": section}
        for name, section in sections.items()
    }

    return train_steps(runs, world_size, VALUES)


@pytest.fixture(scope="module")
def alone():
    """What one process makes of a run, found once for each name."""
    found = {}

    def train_alone(document, name, section):
        if name not in found:
            found[name] = train(document, 1, {}, {name: section})[name]
        return found[name]

    return train_alone


def assert_same_curve(found, wanted):
    assert len(found) == len(wanted) > 0
    for step, (one, two) in enumerate(zip(found, wanted, strict=True), start=1):
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4), step
        for name in LOSSES:
            assert one[name] == pytest.approx(two[name], abs=1e-5), (name, step)


LAYOUTS = {
    # Whole experts beside cut attention: gradients were once summed over the wrong ranks.
    "tp2": (2, {"tp": 2}, [{}]),
    "etp2": (2, {"etp": 2}, [{}]),
    "ep2": (2, {"ep": 2}, [{"shared_expert_overlap": True}, {"dispatcher": "allgather"}]),
    "tp2-ep2": (2, {"tp": 2, "ep": 2}, [{}]),
    "tp2-ep2-etp2": (
        4,
        {"tp": 2, "ep": 2, "etp": 2},
        [{"grouped_gemm": True}, {"dispatcher": "allgather"}],
    ),
    # One stage has no experts and no balancing losses.
    "tp2-pp2-ep2": (4, {"tp": 2, "pp": 2, "ep": 2}, [{}]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_balanced_experts_train_like_one_process(name, moe_run, alone):
    world_size, parallel, sections = LAYOUTS[name]
    document = moe_run(BALANCED)
    wanted = alone(document, "balanced", BALANCE)
    assert all(wanted[-1][loss] > 0.5 for loss in LOSSES)
    runs = {str(section): {**BALANCE, **section} for section in sections}
    for found in train(document, world_size, parallel, runs).values():
        assert_same_curve(found, wanted)


GROUPED_ALLGATHER = {"dispatcher": "allgather", "grouped_gemm": True}
BIASED_LAYOUTS = {
    "tp2-ep2": ({"tp": 2, "ep": 2}, GROUPED_ALLGATHER),
    "tp2-etp2": ({"tp": 2, "etp": 2}, {}),
}


@pytest.mark.parametrize("name", BIASED_LAYOUTS)
def test_experts_with_biases_train_like_one_process(name, moe_run, alone):
    document = moe_run(BIASED, max_steps=FEW)
    wanted = alone(document, "biased", {})
    parallel, section = BIASED_LAYOUTS[name]
    assert_same_curve(train(document, 2, parallel, {name: section})[name], wanted)


def test_filling_experts_up_to_their_capacity_changes_nothing_on_two_ranks(moe_run, alone):
    document = moe_run(BIASED, max_steps=FEW)
    # By position: weights near each other fall on either side of a capacity as rounding has it.
    limit = {"capacity_factor": 1.0, "drop_policy": "position"}
    wanted = alone(document, "capacity", {"dispatcher": "allgather", **limit})
    unlimited = alone(document, "biased", {})
    assert wanted[-1]["loss"] != pytest.approx(unlimited[-1]["loss"], abs=1e-4)
    filled = {"pad_to_capacity": True, "grouped_gemm": True, **limit}
    found = train(document, 2, {"ep": 2}, {"filled": filled})["filled"]
    assert_same_curve(found, wanted)


def on_one_rank(document, look):
    """What `look(chunk)` makes of the model of a run's arch and moe section, not yet trained."""

    def rank(_rank):
        from llm_train.arch import parse as parse_arch
        from llm_train.config import MoeConfig, ParallelConfig
        from llm_train.edge.device import DeviceKind, device_session
        from llm_train.edge.groups import model_parallel
        from llm_train.model.build import build_chunks, transformer_config

        facts = json.loads(Path(document["model"]["arch"]).read_text())
        arch, parallel = parse_arch(facts, where="test"), ParallelConfig()
        with device_session(DeviceKind.CPU), model_parallel(parallel, seed=1):
            moe = MoeConfig.model_validate(document["moe"])
            config = transformer_config(arch, parallel, dtype=torch.float32, init_std=0.5, moe=moe)
            return look(build_chunks(arch, config)[0])

    return run_ranks(rank, 1)[0]


def test_balancing_losses_pull_as_their_formulas_say(moe_run):
    """Switch Transformer's (2101.03961), DeepSeek-V3's by sequence (2412.19437), ST-MoE's z."""
    coefficients = {"aux_loss_coeff": 0.3, "seq_aux_loss_coeff": 0.5, "z_loss_coeff": 0.7}
    tokens, batch = 6, 3
    x = torch.randn(tokens, batch, 32, generator=torch.Generator().manual_seed(3))

    def look(chunk):
        router = chunk.decoder.layers[1].mlp.router
        weights, _ = router(x)
        weights.sum().mul(0.0).backward()
        return router.weight.detach(), router.weight.grad

    weight, found = on_one_rank({**moe_run(BALANCED), "moe": coefficients}, look)

    def switch(scores):
        choices = torch.zeros_like(scores).scatter(-1, scores.topk(2).indices, 1.0)
        share, mean = choices.mean(0) / 2, scores.mean(0)
        return 8 * (share * mean).sum()

    weight.requires_grad_()
    logits = x @ weight.T
    scores = logits.sigmoid() / logits.sigmoid().sum(-1, keepdim=True)
    by_sequence = torch.stack([switch(scores[:, row]) for row in range(batch)]).mean()
    z = logits.exp().sum(-1).log().square().mean()
    loss = 0.3 * switch(scores.flatten(0, 1)) + 0.5 * by_sequence + 0.7 * z
    # The losses of tokens are sums, divided by their number at the very end.
    (loss * tokens * batch).backward()
    torch.testing.assert_close(found, weight.grad, rtol=1e-4, atol=1e-5)


def test_half_models_count_and_bias_experts_in_fp32(moe_run):
    def look(chunk):
        router = chunk.decoder.layers[1].mlp.router
        router.expert_bias.fill_(1 / 3)
        router.local_tokens_per_expert.fill_(4097)
        chunk.bfloat16()
        return router.weight.dtype, router.expert_bias, router.local_tokens_per_expert

    dtype, bias, counts = on_one_rank({**moe_run(BALANCED), "moe": {}}, look)
    assert dtype is torch.bfloat16
    assert bias.tolist() == torch.full((8,), 1 / 3).tolist()
    assert counts.tolist() == [4097.0] * 8


def test_expert_biases_move_once_a_step_by_what_all_ranks_counted(moe_run):
    """DeepSeek's rule (2408.15664): up by the rate when chosen less than the mean, else down."""
    document = moe_run(BALANCED, max_steps=1, global_batch_size=8)
    document |= {"parallel": {"ep": 2}, "moe": {"bias_update_rate": 0.25}}
    document["optimizer"] |= {"decay_steps": 4}

    def look(training, splits):
        router = training.chunks[0].decoder.layers[1].mlp.router
        counted = []
        router.register_forward_hook(lambda _m, _i, out: counted.append(out[1].sum(0)))
        go(training, splits, None)
        return torch.stack(counted), router.expert_bias

    found = run_ranks(lambda _rank: dict(each_run({"it": document}, look))["it"], 2)
    assert [len(counted) for counted, _ in found] == [2, 2]
    total = sum(counted.sum(0) for counted, _ in found)
    wanted = 0.25 * torch.sign(total.float().mean() - total)
    assert wanted.unique().numel() > 1
    for _, bias in found:
        assert torch.equal(bias, wanted)


def test_expert_biases_are_saved_and_resumed(moe_run, tmp_path):
    document = moe_run(BALANCED, max_steps=4)
    document |= {"moe": {"bias_update_rate": 0.25}}
    document["optimizer"] |= {"decay_steps": 4}

    def losses(name, *steps):
        folder = tmp_path / name
        run_document = {**document, "save": {"path": str(folder)}}

        def rank(_rank):
            from llm_train.config_parse import parse
            from llm_train.edge.run import run

            for last in steps:
                run(parse(run_document, [f"train.max_steps={last}"], "test"))

        run_ranks(rank, 1)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    assert losses("resumed", 2, 4) == losses("straight", 4)


def kept_bytes(training, splits):
    """What one forward over four samples keeps for backward."""
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    sample = torch.stack([splits.train[i]["tokens"] for i in range(4)])
    positions = torch.arange(sample.shape[1]).expand_as(sample)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = training.chunks[0](sample, positions, None, labels=sample)
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def test_an_activation_computed_again_is_not_kept_and_changes_no_bit(moe_run):
    document = moe_run(BIASED, max_steps=4)
    again = {"recompute": {"kind": "selective", "modules": ["activation"]}}
    runs = {
        (name, recompute): {**document, "moe": moe, **(again if recompute else {})}
        for name, moe in {"grouped": {"grouped_gemm": True}, "one by one": {}}.items()
        for recompute in (False, True)
    }

    def look(training, splits):
        size = kept_bytes(training, splits)
        return size, steps_of(training, splits, VALUES)

    found = run_ranks(lambda _rank: dict(each_run(runs, look)), 1)[0]
    # Four samples of 32 tokens, two experts each, in fp32; and the dense layer's.
    outputs = 4 * 32 * (2 * EXPERTS["ffn_hidden_size"] + 48) * 4
    for name in ("grouped", "one by one"):
        (plain_size, plain), (size, again) = found[name, False], found[name, True]
        assert plain == again
        assert plain_size - size >= outputs
