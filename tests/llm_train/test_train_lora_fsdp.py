"""Adapters and a frozen base whose rows are shared out over data-parallel ranks (FSDP2)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ckpt_models import build_model
from ckpt_zoo import CASES
from fork_ranks import run_ranks
from llm_train.arch import parse as parse_arch
from llm_train.config import RunConfig
from llm_train.edge import checkpoint_files
from llm_train.model.nf4 import Nf4Tensor
from llm_train.plan import make_plan
from llm_train.weights import open_source
from sft_data import make_chats, write_samples
from train_curves import each_run, go, train_curves

LINEARS = ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]
SHARDED = {"parallel": {"fsdp": True}}


@pytest.fixture(scope="module", autouse=True)
def _dynamo():
    """FSDP2 imports it at its first forward: once here, and not in every rank."""
    import torch._dynamo.compiled_autograd  # noqa: F401


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    build_model("qwen3", num_hidden_layers=2).save_pretrained(folder / "hf")
    return folder / "hf", write_samples(folder / "data", make_chats(8))


def document_of(made, save, *, precision="fp32", parallel=None, **lora):
    return {
        "stage": "sft",
        "model": {"load": str(made[0])},
        "data": {"train": [str(made[1])]},
        "train": {
            "max_steps": 4,
            "seq_length": 48,
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "precision": precision,
        },
        "optimizer": {"lr": 1e-2, "clip_grad": 0.0},
        "lora": {"rank": 4, "alpha": 12, "target_modules": LINEARS, **lora},
        "parallel": parallel or {},
        "save": {"path": str(save), "every": 2},
        "device": "cpu",
    }


def train(document, world_size):
    """The losses of a run, and the adapter that it wrote."""

    def rank(_rank):
        from llm_train.config_parse import parse
        from llm_train.edge.run import run

        run(parse(document, [], "test"))

    run_ranks(rank, world_size)
    root = Path(document["save"]["path"])
    lines = map(json.loads, (root / "metrics.jsonl").read_text().splitlines())
    folder = checkpoint_files.adapter_folder(root, 4)
    return [one["loss"] for one in lines], load_file(folder / "adapter_model.safetensors")


def go_on(source, name, document, world_size):
    """A run goes on from step 2 of another."""
    root = source.with_name(name)
    shutil.copytree(source, root)
    shutil.rmtree(checkpoint_files.iteration_folder(root, 4))
    shutil.rmtree(checkpoint_files.adapter_folder(root, 4))
    document["save"] = {"path": str(root), "every": 2, "resume": "require"}
    return train(document, world_size)


def test_an_adapter_is_saved_and_gone_on_with_at_this_and_any_other_layout(made, tmp_path):
    """DoRA of three ranks, whose rows end inside of ranks, heads and the gate."""

    def document(parallel, save="unused"):
        found = document_of(made, tmp_path / save, parallel=parallel, dora=True)
        found["train"] |= {"global_batch_size": 6, "micro_batch_size": 1}
        return found

    fsdp = {"fsdp": True}
    alone = train(document({}, "alone"), 1)
    losses, tensors = train(document(fsdp, "whole"), 3)
    assert losses == pytest.approx(alone[0], abs=1e-5)
    again = go_on(tmp_path / "whole", "again", document(fsdp), 3)
    assert again[0] == losses
    assert all(torch.equal(again[1][name], tensor) for name, tensor in tensors.items())
    others = {
        "from rows to one process": go_on(tmp_path / "whole", "one", document({}), 1),
        "from one process to rows": go_on(tmp_path / "alone", "back", document(fsdp), 3),
    }
    for name, (found, adapter) in {"itself": (losses, tensors), **others}.items():
        assert found == pytest.approx(alone[0], abs=1e-5), name
        assert adapter.keys() == alone[1].keys()
        for key, tensor in adapter.items():
            torch.testing.assert_close(tensor, alone[1][key], atol=1e-4, rtol=1e-4, msg=name)


def test_two_axes_and_adapters_as_one_with_their_linear_train_like_one_process(made, tmp_path):
    """Recomputed, kept gathered and overlapped alike."""
    alone = train_curves({"": document_of(made, tmp_path / "one")}, 1)[""]
    runs = {
        "plain": document_of(made, tmp_path / "run", parallel={"fsdp": True, "tp": 2}),
        "overlap": document_of(
            made, tmp_path / "run", parallel={"fsdp": True, "tp": 2}, overlap=True, fused_mlp=True
        ),
        "kept": document_of(
            made,
            tmp_path / "run",
            parallel={"fsdp": True, "tp": 2, "fsdp_reshard_after_forward": False},
        )
        | {"recompute": {"kind": "full"}},
    }
    for name, curve in train_curves(runs, 4).items():
        assert curve == [pytest.approx(step, rel=1e-5, abs=1e-5) for step in alone], name


def test_bf16_trains_as_the_distributed_optimizer_does(made, tmp_path):
    runs = {
        is_sharded: document_of(
            made, tmp_path / "run", precision="bf16", parallel={"fsdp": is_sharded}
        )
        for is_sharded in (False, True)
    }
    for one in runs.values():
        one["train"]["micro_batch_size"] = 4
    found = train_curves(runs, 2)
    assert [loss for loss, _ in found[True]] == [loss for loss, _ in found[False]]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_rank_keeps_its_rows_as_planned(precision, made, tmp_path):
    """The frozen base in the type of the computation, adapters as fp32 masters."""
    document = document_of(made, tmp_path / "run", precision=precision, **SHARDED)

    def look(training, splits):
        class Log:
            def step(self, metrics):
                pass

        go(training, splits, Log())
        rows = [one for chunk in training.trainable.chunks for one in chunk.parameters()]
        assert {one.dtype for one in rows if one.requires_grad} == {torch.float32}
        gradients = sum(one.main_grad.nbytes for one in rows if one.requires_grad)
        return sum(one.nbytes for one in rows), gradients

    arch = parse_arch(dict(open_source(made[0]).arch), where="test")
    (planned,) = make_plan(RunConfig.model_validate(document), arch, 2).memory
    for kept in run_ranks(lambda _: dict(each_run({"run": document}, look))["run"], 2):
        assert kept == (planned.weights, planned.gradients)


def nf4_bytes(chunk):
    """Of what is in four bits: beside what is cut."""
    return sum(one.data.num_bytes for one in chunk.parameters() if isinstance(one.data, Nf4Tensor))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_base_in_four_bits_stays_whole_beside_what_is_cut(precision, made, tmp_path):
    """As planned; embeddings, output, norms and adapters are cut as ever."""
    document = document_of(made, tmp_path / "run", precision=precision, quantize="nf4", **SHARDED)

    def look(training, splits):
        class Log:
            def step(self, metrics):
                pass

        go(training, splits, Log())
        rows = [one for chunk in training.trainable.chunks for one in chunk.parameters()]
        return sum(one.nbytes for one in rows), sum(map(nf4_bytes, training.chunks))

    arch = parse_arch(dict(open_source(made[0]).arch), where="test")
    (planned,) = make_plan(RunConfig.model_validate(document), arch, 2).memory
    for rows, quantized in run_ranks(lambda _: dict(each_run({"run": document}, look))["run"], 2):
        assert quantized > 0
        # Each weight has a mean of its scales, and a last block of them that is not full.
        assert rows + quantized == pytest.approx(planned.weights, rel=2e-3)


def test_adapters_of_a_base_in_four_bits_train_as_without_sharding(made, tmp_path):
    """At one rank, and at two of tensor parallel, whose scales are of a rank's part.

    The output learns whole beside them.
    """
    options = {"quantize": "nf4", "modules_to_save": ["output_layer"]}
    for ranks, parallel in ((1, {}), (2, {"tp": 2})):
        alone = document_of(made, tmp_path / "run", parallel=parallel, **options)
        cut = document_of(made, tmp_path / "run", parallel={**parallel, "fsdp": True}, **options)
        kept = {**cut, "parallel": {**cut["parallel"], "fsdp_reshard_after_forward": False}}
        kept["recompute"] = {"kind": "full"}
        wanted = train_curves({"": alone}, ranks)[""]
        for name, curve in train_curves({"cut": cut, "kept": kept}, 2 * ranks).items():
            assert curve == [pytest.approx(one, rel=1e-5, abs=1e-5) for one in wanted], name


def test_experts_in_four_bits_train_as_without_sharding(made, tmp_path):
    case = next(case for case in CASES if case.family == "qwen3_moe" and case.write is None)
    of_experts = (case.save(tmp_path / "hf"), made[1])
    options = {"quantize": "nf4", "target_modules": ["linear_qkv"]}
    alone = document_of(of_experts, tmp_path / "run", **options)
    cut = document_of(of_experts, tmp_path / "run", parallel={"fsdp": True, "ep": 2}, **options)
    wanted = train_curves({"": alone}, 1)[""]
    assert train_curves({"": cut}, 4)[""] == [
        pytest.approx(one, rel=1e-5, abs=1e-5) for one in wanted
    ]


def test_adapters_of_a_base_in_four_bits_pass_to_and_from_one_process(made, tmp_path):
    def document(parallel, save="unused"):
        return document_of(made, tmp_path / save, parallel=parallel, quantize="nf4")

    alone = train(document({}, "alone"), 1)
    losses, tensors = train(document({"fsdp": True}, "cut"), 2)
    found = {
        "cut": (losses, tensors),
        "again": go_on(tmp_path / "cut", "again", document({"fsdp": True}), 2),
        "to one": go_on(tmp_path / "cut", "one", document({}), 1),
        "from one": go_on(tmp_path / "alone", "from", document({"fsdp": True}), 2),
    }
    for name, (losses, tensors) in found.items():
        assert losses == pytest.approx(alone[0], abs=1e-5), name
        for key, tensor in alone[1].items():
            torch.testing.assert_close(tensors[key], tensor, atol=1e-4, rtol=1e-4, msg=name)
