"""Optimizer state kept elsewhere, in halves or in bf16: the same training, fewer bytes."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fork_ranks import run_ranks
from live_tensors import storage_bytes
from llm_train.edge import checkpoint_files
from train_curves import curve_of, each_run, train_curves


@pytest.fixture
def run_of(run_document, tmp_path):
    """`run_of(precision)`: 6 steps of a dense model of two small layers."""
    arch = json.loads(Path(run_document["model"]["arch"]).read_text())
    arch["layers"][0]["count"] = 2
    (tmp_path / "arch.json").write_text(json.dumps(arch))

    def make(precision, **sections):
        train = {"max_steps": 6, "global_batch_size": 4, "micro_batch_size": 1}
        return {
            **run_document,
            "model": {**run_document["model"], "arch": str(tmp_path / "arch.json")},
            "train": {**run_document["train"], **train, "precision": precision},
            **sections,
        }

    return make


KEPT = {"offload_optimizer": True, "reuse_parameter_copy": True}

# How state is kept → does it change what is trained?
STATE = {
    "offload_optimizer": {"offload_optimizer": True},
    "reuse_parameter_copy": {"reuse_parameter_copy": True},
    "both": KEPT,
}
LAYOUTS = {
    "one": (1, {}),
    "dp2-overlap": (2, {"overlap_grad_reduce": True, "overlap_param_gather": True}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_state_kept_elsewhere_or_in_halves_trains_the_same_to_the_bit(layout, run_of):
    world_size, parallel = LAYOUTS[layout]
    runs = {}
    for precision in ("fp32", "bf16", "fp16"):
        runs[precision] = run_of(precision, parallel=parallel)
        for name, memory in STATE.items():
            if precision == "bf16" or name == "offload_optimizer":
                runs[f"{precision}-{name}"] = run_of(precision, parallel=parallel, memory=memory)
    curves = train_curves(runs, world_size)
    assert len(curves["fp32"]) == 6
    assert curves["fp32"] != curves["bf16"]
    assert curves == {name: curves[name.split("-")[0]] for name in curves}


def test_experts_have_an_optimizer_of_their_own_that_keeps_state_as_well(run_of, moe_arch):
    document = run_of("bf16", parallel={"ep": 2})
    document["model"] = {**document["model"], "arch": str(moe_arch)}
    curves = train_curves({"plain": document, "kept": {**document, "memory": KEPT}}, 2)
    assert curves["kept"] == curves["plain"]


def state_bytes(training, splits):
    """Bytes of weights and optimizer state, and the number of weights, after training."""
    curve_of(training, splits)
    tensors = list(training.chunks[0].parameters())
    weights = sum(one.numel() for one in tensors)
    for part in training.trainable.optimizer.chained_optimizers:
        for group in part.optimizer.param_groups:
            tensors += group["params"]
        for state in part.optimizer.state.values():
            tensors += [value for name, value in state.items() if name != "step"]
    return storage_bytes(tensors), weights


# Bytes a weight of one rank that are no longer kept, by hand: the bf16 copy, two moments of two
# bytes less each, a master of four.
SAVED = {
    "halves": ({"reuse_parameter_copy": True}, 2),
    "moments": ({"optimizer_state": "bf16"}, 2 * 2),
    "no master": ({"master_weights": "bf16"}, 4),
    "o2": ({"optimizer_state": "bf16", "master_weights": "bf16"}, 2 * 2 + 4),
    "all": ({"optimizer_state": "bf16", "reuse_parameter_copy": True}, 2 * 2 + 2),
}


def test_bytes_of_state_fall_by_what_is_not_kept(run_of):
    runs = {name: run_of("bf16", memory=memory) for name, (memory, _) in SAVED.items()}
    rank = lambda _: dict(each_run({"plain": run_of("bf16"), **runs}, state_bytes))  # noqa: E731
    found = run_ranks(rank, 1)[0]
    plain, weights = found["plain"]
    # Weights and their gradient buffer's filling, fp32 masters, two moments.
    assert weights * (2 + 4 + 8) <= plain <= weights * (2 + 4 + 8) * 1.01
    assert {name: plain - found[name][0] for name in SAVED} == {
        name: weights * size for name, (_, size) in SAVED.items()
    }


def train(document, world_size):
    def rank(_rank):
        from llm_train.config_parse import parse
        from llm_train.edge.run import run

        run(parse(document, [], "test"))

    run_ranks(rank, world_size)
    lines = (Path(document["save"]["path"]) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {r["step"]: (r["loss"], r["grad_norm"]) for r in records if "loss" in r}


def test_a_run_goes_on_exactly_whatever_its_checkpoint_was_kept_as(run_of, tmp_path):
    """Saved with and resumed without, and the other way round, on two data-parallel ranks."""
    kinds, whole = {"plain": {}, "kept": KEPT}, {}
    for name, memory in kinds.items():
        save = {"path": str(tmp_path / name), "every": 3}
        whole[name] = train(run_of("bf16", memory=memory, save=save), 2)
        shutil.rmtree(checkpoint_files.iteration_folder(tmp_path / name, 6))
    assert list(whole["plain"]) == [1, 2, 3, 4, 5, 6]
    assert whole["kept"] == whole["plain"]
    for name, memory in (("plain", KEPT), ("kept", {})):
        save = {"path": str(tmp_path / name), "resume": "require"}
        assert train(run_of("bf16", memory=memory, save=save), 2) == whole["plain"]


def test_gradients_in_bf16_train_nearly_the_same(run_of):
    runs = {name: run_of("bf16", memory={"gradients": name}) for name in ("fp32", "bf16")}
    curves = train_curves(runs, 1)
    assert curves["bf16"] != curves["fp32"]
    for one, two in zip(curves["bf16"], curves["fp32"], strict=True):
        assert one[0] == pytest.approx(two[0], abs=5e-3)
        assert one[1] == pytest.approx(two[1], rel=2**-6)


def test_a_number_is_its_bf16_neighbour_and_what_is_left():
    """Every low half beside high halves of both signs, even and odd, tiny, huge and infinite."""
    from llm_train.train.memory.halves import join, split

    highs = torch.tensor([0x0000, 0x0001, 0x3F80, 0x3F81, 0x7F7E, 0x7F7F, 0x0080])
    highs = torch.cat([highs, highs + 0x8000])
    bits = (highs[:, None] << 16) + torch.arange(1 << 16)[None, :]
    numbers = torch.cat([bits.flatten(), torch.tensor([0x7F800000, 0xFF800000])])
    numbers = numbers.to(torch.int32).view(torch.float32)
    halves = split(numbers)
    assert torch.equal(halves.high.view(torch.int16), numbers.bfloat16().view(torch.int16))
    assert torch.equal(join(halves).view(torch.int32), numbers.view(torch.int32))
    assert halves.is_tie.sum() == (highs % 2 == 0).sum()


@pytest.fixture
def cpu_streams():
    """`torch.cuda`'s streams mean nothing, as in a run on a CPU."""
    from llm_train.edge.patches import Patches, patch_cpu

    patches = Patches()
    patch_cpu(patches)
    yield
    patches.undo()


def _groups(weights):
    hyper = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    return [{"params": [one], **hyper, "weight_decay": 0.1 * i} for i, one in enumerate(weights)]


def _weights(dtype):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, generator=generator).to(dtype) for n in (700, 33, 128)]


def _gradients(step):
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(n, generator=generator) * 10.0**-i for i, n in enumerate((700, 33, 128))]


def _updated(dtype, **layout):
    from llm_train.train.memory.adam import KeptAdam, Master, StateLayout

    chosen = {"moments": torch.float32, "master": Master.WHOLE, "host": None, **layout}
    weights = _weights(dtype)
    optimizer = KeptAdam(_groups(weights), StateLayout(**chosen))
    for step in range(5):
        for weight, gradient in zip(weights, _gradients(step), strict=True):
            weight.decoupled_grad = gradient
        optimizer.step()
    return weights, optimizer


@pytest.mark.parametrize("part_elements", [64, 256, 10**6])
@pytest.mark.parametrize("host", [None, torch.device("cpu")])
def test_an_update_in_parts_is_torchs_own(part_elements, host, cpu_streams):
    weights, optimizer = _updated(torch.float32, host=host, part_elements=part_elements)
    expected = _weights(torch.float32)
    torchs = torch.optim.AdamW(_groups(expected))
    for step in range(5):
        for weight, gradient in zip(expected, _gradients(step), strict=True):
            weight.grad = gradient
        torchs.step()
    for one, two in zip(weights, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)
        assert optimizer.state[one]["step"] == torchs.state[two]["step"] == 5


def _adam_by_hand(weights, keep):
    """Loshchilov and Hutter's algorithm 2, moments and weights passed through `keep`."""
    moments = [(torch.zeros(one.shape), torch.zeros(one.shape)) for one in weights]
    for step in range(1, 6):
        for i, gradient in enumerate(_gradients(step - 1)):
            first, second = moments[i]
            first = 0.9 * first + 0.1 * gradient
            second = 0.95 * second + 0.05 * gradient**2
            ratio = first / (1 - 0.9**step) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
            weights[i] = weights[i] - 1e-2 * (ratio + 0.1 * i * weights[i])
            moments[i] = (keep(first), keep(second))
    return weights, moments


def _bf16(x):
    return x.bfloat16().float()


def test_moments_in_bf16_are_those_of_adam_by_hand(cpu_streams):
    weights, optimizer = _updated(torch.float32, moments=torch.bfloat16)
    by_hand, moments = _adam_by_hand(_weights(torch.float32), _bf16)
    exact, _ = _adam_by_hand(_weights(torch.float32), lambda x: x)
    for i, one in enumerate(weights):
        state = optimizer.state[one]
        assert (state["exp_avg"].float() == moments[i][0]).float().mean() > 0.99
        assert (state["exp_avg_sq"].float() == moments[i][1]).float().mean() > 0.99
        near = (one - by_hand[i]).abs().median()
        assert near < 1e-7
        assert near < (one - exact[i]).abs().median() / 20


def test_without_a_master_the_update_rounds_the_weight_itself(cpu_streams):
    from llm_train.train.memory.adam import Master

    weights, optimizer = _updated(torch.bfloat16, master=Master.NOTHING)
    expected = [one.float() for one in _weights(torch.bfloat16)]
    torchs = torch.optim.AdamW(_groups(expected))
    for step in range(5):
        for weight, gradient in zip(expected, _gradients(step), strict=True):
            weight.grad = gradient
        torchs.step()
        for weight in expected:
            weight.copy_(weight.bfloat16())
    for one, two in zip(weights, expected, strict=True):
        assert (one.float() == two).float().mean() > 0.99
        assert set(optimizer.state[one]) == {"step", "exp_avg", "exp_avg_sq"}
