"""Modules that train whole beside adapters (PEFT's `modules_to_save`), as peft itself has them."""

import shutil

import peft
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from ckpt_models import build_model
from fork_ranks import RankError, run_ranks
from llm_ckpt.cli import main as llm_ckpt
from llm_train.arch import parse as parse_arch
from llm_train.check import problems
from llm_train.config import RunConfig
from llm_train.edge import checkpoint_files
from llm_train.plan import make_plan
from llm_train.weights import open_source
from peft_runs import (
    CHATS,
    STEPS,
    assert_as_peft,
    assert_learned,
    document_of,
    logits_by_peft,
    logits_of_state,
    train,
    trained_by_peft,
    write_by_peft,
)
from sft_data import write_samples
from train_curves import each_run, go

# As peft and as we call them: cut over ranks and not, matrices and a vector.
THEIRS = ["embed_tokens", "lm_head", "model.norm"]
OURS = ["word_embeddings", "output_layer", "final_layernorm"]
SAVED = {"modules_to_save": OURS}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    # No multiple of two: at two ranks the vocabulary has a row of filling.
    build_model("qwen3", num_hidden_layers=2, vocab_size=259).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("data") / "data", CHATS)


@pytest.fixture(scope="module")
def made_by_peft(base, tmp_path_factory):
    """Whose saved modules are not the base's any more."""
    folder = write_by_peft(base, tmp_path_factory.mktemp("peft"), modules_to_save=THEIRS)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if "lora" not in name:
            tensor += 0.02 * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, path)
    return folder


def merged_logits(base, adapter, output):
    words = ["merge-lora", str(base), str(adapter), "--output", str(output)]
    merged = CliRunner().invoke(llm_ckpt, words)
    assert merged.exit_code == 0, merged.output
    model = transformers.AutoModelForCausalLM.from_pretrained(output)
    with torch.no_grad():
        return model(torch.tensor([CHATS[0][0]])).logits


@pytest.mark.parametrize(
    ("ranks", "parallel"),
    [(1, {}), (2, {"tp": 2, "sequence_parallel": True}), (2, {"pp": 2}), (2, {"fsdp": True})],
    ids=["1", "tp", "pp", "fsdp"],
)
def test_a_run_trains_whole_modules_as_peft_would(
    ranks, parallel, base, data, made_by_peft, tmp_path
):
    made = document_of(base, data, tmp_path / "run", made_by_peft, **SAVED)
    _, wanted = trained = trained_by_peft(base, made_by_peft)
    assert_as_peft(train(made | {"parallel": parallel}, ranks), trained)
    assert_learned(wanted, made_by_peft)
    wanted_logits = logits_of_state(base, made_by_peft, wanted)
    written = checkpoint_files.adapter_folder(tmp_path / "run", STEPS)
    torch.testing.assert_close(logits_by_peft(base, written), wanted_logits, atol=1e-4, rtol=1e-4)
    # By these names peft would train them on.
    names = ["lm_head", "model.embed_tokens", "model.norm"]
    assert peft.PeftConfig.from_pretrained(written).modules_to_save == names
    found = merged_logits(base, written, tmp_path / "merged")
    torch.testing.assert_close(found, wanted_logits, atol=1e-4, rtol=1e-4)


def test_they_begin_as_the_base_without_a_folder_and_are_resumed_at_any_layout(
    base, data, tmp_path
):
    made = document_of(base, data, tmp_path / "run", None, **SAVED)
    made["lora"]["load"] = None
    made["train"]["max_steps"] = 4
    made["save"]["every"] = 2
    losses, wanted = train(made)
    for name, ranks, parallel in (
        ("same", 1, {}),
        ("tp", 2, {"tp": 2}),
        ("fsdp", 2, {"fsdp": True}),
    ):
        root = shutil.copytree(tmp_path / "run", tmp_path / name)
        shutil.rmtree(checkpoint_files.iteration_folder(root, 4))
        shutil.rmtree(checkpoint_files.adapter_folder(root, 4))
        again = made | {"parallel": parallel, "save": {"path": str(root), "resume": "require"}}
        found_losses, found = train(again, ranks)
        assert found_losses == pytest.approx(losses, abs=1e-5), name
        for key, tensor in wanted.items():
            torch.testing.assert_close(
                found[key], tensor, atol=1e-5, rtol=1e-5, msg=f"{name} {key}"
            )


def test_tables_that_peft_keeps_beside_their_adapters_are_the_bases(base, data, tmp_path):
    """Not trained; peft writes them where an embedding is adapted."""
    modules = ["embed_tokens", "o_proj"]
    adapter = write_by_peft(base, tmp_path / "peft", target_modules=modules)
    targets = {"target_modules": ["word_embeddings", "linear_proj"]}
    made = document_of(base, data, tmp_path / "run", adapter, **targets)
    losses, _ = train(made)
    assert losses == pytest.approx(trained_by_peft(base, adapter)[0], abs=1e-5)
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    (name,) = (name for name in tensors if name.endswith("embed_tokens.base_layer.weight"))
    tensors[name][7] += 1.0
    save_file(tensors, path)
    with pytest.raises(RankError, match=r"has another embedding.word_embeddings.weight than model"):
        train(made)
    save_file(tensors | {name: tensors[name][:-1].clone()}, path)
    with pytest.raises(
        RankError, match=r"embed_tokens.weight is \[258, \d+\], in the model \[259,"
    ):
        train(made)


def test_what_is_not_both_here_and_there_or_cannot_be_is_refused(
    base, data, made_by_peft, tmp_path
):
    for lora, message in (
        ({}, "has whole 3 modules that .* do not, decoder.final_layernorm.weight the first"),
        (
            {"modules_to_save": [*OURS, "q_layernorm"]},
            "has not whole decoder.layers.0.self_attention.q_layernorm.weight, which lora.modules",
        ),
        ({"modules_to_save": ["lm_head"]}, "'lm_head' matches none of the model's .* modules; "),
        (
            {"modules_to_save": ["linear_fc1"]},
            "decoder.layers.0.mlp.linear_fc1 is of lora.target_modules too; want one",
        ),
        (
            {
                "modules_to_save": ["linear_fc1"],
                "target_modules": ["linear_qkv"],
                "quantize": "nf4",
            },
            "decoder.layers.0.mlp.linear_fc1 is of lora.quantize too; want one",
        ),
    ):
        made = document_of(base, data, tmp_path / "run", made_by_peft, **lora)
        with pytest.raises(RankError, match=message):
            train(made)
    arch = dict(open_source(base).arch) | {"tie_embeddings": True}
    made = document_of(base, data, tmp_path / "run", made_by_peft, **SAVED)
    (problem,) = problems(RunConfig.model_validate(made), parse_arch(arch, where="test"), 1)
    assert problem.startswith("lora.modules_to_save: output_layer is in use at two places (tie_emb")


@pytest.mark.parametrize("parallel", [{"tp": 2}, {"fsdp": True}], ids=["tp", "fsdp"])
def test_a_plan_counts_them(parallel, base, data, tmp_path):
    made = document_of(base, data, tmp_path / "run", None, **SAVED) | {"parallel": parallel}
    made["lora"]["load"] = None
    made["train"]["precision"] = "bf16"

    def look(training, splits):
        class Log:
            def step(self, metrics):
                pass

        go(training, splits, Log())
        own = [one for chunk in training.trainable.chunks for one in chunk.parameters()]
        learned = [one for one in own if one.requires_grad]
        return sum(one.nbytes for one in own), sum(one.main_grad.nbytes for one in learned)

    arch = parse_arch(dict(open_source(base).arch), where="test")
    plan = make_plan(RunConfig.model_validate(made), arch, 2)
    (planned,) = plan.memory
    kept = run_ranks(lambda _: dict(each_run({"run": made}, look))["run"], 2)
    # An odd number of rows is shared out unevenly; a plan has the mean.
    total = tuple(map(sum, zip(*kept, strict=True)))
    assert total == (2 * planned.weights, 2 * planned.gradients)
    rows = 259 + 259 % made["parallel"].get("tp", 1)
    without = {**made, "lora": {**made["lora"], "modules_to_save": []}}
    apart = make_plan(RunConfig.model_validate(without), arch, 2).trained_parameters
    assert plan.trained_parameters - apart == (2 * rows + 1) * arch.hidden_size
