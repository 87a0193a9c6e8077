"""Runs that begin with a PEFT folder go on as peft itself would, or say why they cannot."""

import json
import shutil

import peft
import pytest
import torch
import transformers

from ckpt_models import build_model
from ckpt_zoo import CASES
from fork_ranks import RankError
from llm_train.edge import checkpoint_files
from peft_runs import (
    CHATS,
    LINEARS,
    MODULES,
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


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    build_model("qwen3", num_hidden_layers=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made_by_peft(base, tmp_path_factory):
    return write_by_peft(base, tmp_path_factory.mktemp("peft"))


@pytest.mark.parametrize(
    ("ranks", "parallel"), [(1, {}), (2, {"tp": 2}), (2, {"fsdp": True})], ids=["1", "tp", "fsdp"]
)
def test_a_run_goes_on_as_peft_would(ranks, parallel, base, made_by_peft, tmp_path):
    data = write_samples(tmp_path / "data", CHATS)
    made = document_of(base, data, tmp_path / "run", made_by_peft)
    _, wanted = trained = trained_by_peft(base, made_by_peft)
    assert_as_peft(train(made | {"parallel": parallel}, ranks), trained)
    assert_learned(wanted, made_by_peft)


# Several in one weight of ours (q, k and v; gate and up), and one for a layer alone.
PATTERNS = {
    "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 8},
    "alpha_pattern": {"v_proj": 2, "up_proj": 5, "o_proj": 3},
}


@pytest.mark.parametrize(
    ("ranks", "parallel", "options"),
    [(1, {}, {"use_rslora": True}), (2, {"tp": 2}, {"use_dora": True}), (2, {"fsdp": True}, {})],
    ids=["1-rslora", "tp-dora", "fsdp"],
)
def test_a_run_goes_on_with_several_ranks_and_alphas(options, ranks, parallel, base, tmp_path):
    modules = [*MODULES, "k_proj"] if options else MODULES
    adapter = write_by_peft(base, tmp_path / "peft", target_modules=modules, **PATTERNS, **options)
    data = write_samples(tmp_path / "data", CHATS)
    lora = {key.removeprefix("use_"): value for key, value in options.items()}
    made = document_of(base, data, tmp_path / "run", adapter, **lora)
    _, wanted = trained = trained_by_peft(base, adapter)
    assert_as_peft(train(made | {"parallel": parallel}, ranks), trained)
    # peft is told the ranks and scalings as it told us.
    wanted_logits = logits_of_state(base, adapter, wanted)
    written = checkpoint_files.adapter_folder(tmp_path / "run", STEPS)
    torch.testing.assert_close(logits_by_peft(base, written), wanted_logits, atol=1e-4, rtol=1e-4)


def test_a_run_goes_on_with_pefts_adapters_of_experts(tmp_path):
    """Of the parameters that hold its experts (`target_parameters`), transposed in gpt_oss.

    Their ranks and scalings are their own.
    """
    (case,) = (one for one in CASES if one.id == "gpt_oss")
    base, adapter = case.save(tmp_path / "base"), tmp_path / "peft"
    torch.manual_seed(0)
    settings = peft.LoraConfig(
        r=4,
        lora_alpha=12,
        target_modules=["o_proj"],
        target_parameters=["experts.gate_up_proj", "experts.down_proj"],
        rank_pattern={r".*experts\.down_proj": 2},
        alpha_pattern={r".*experts\.gate_up_proj": 6},
        init_lora_weights=False,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    peft.get_peft_model(model, settings).save_pretrained(adapter)
    data = write_samples(tmp_path / "data", CHATS)
    targets = ["linear_proj", "*.experts.*"]
    made = document_of(base, data, tmp_path / "run", adapter, target_modules=targets)
    assert_as_peft(train(made), trained_by_peft(base, adapter))


def test_a_run_goes_on_with_the_adapter_of_another_for_its_base_alone(base, tmp_path):
    """Of one A for the modules of a weight, as our own runs have; its moments begin anew."""
    data = write_samples(tmp_path / "data", CHATS)
    targets = [*LINEARS, "word_embeddings"]
    first = document_of(base, data, tmp_path / "first", None, dora=True, target_modules=targets)
    first["lora"]["load"] = None
    train(first)
    adapter = checkpoint_files.adapter_folder(tmp_path / "first", STEPS)
    again = {"dora": True, "target_modules": targets}
    second = document_of(base, data, tmp_path / "second", adapter, **again)
    losses, tensors = train(second)
    wanted_losses, wanted = trained_by_peft(base, adapter)
    assert losses[0] == pytest.approx(wanted_losses[0], abs=1e-5)
    # peft keeps the table beside its adapter.
    del wanted["base_model.model.model.embed_tokens.base_layer.weight"]
    assert tensors.keys() == wanted.keys()

    build_model("qwen3", num_hidden_layers=2, seed=1).save_pretrained(tmp_path / "other")
    other = document_of(tmp_path / "other", data, tmp_path / "third", adapter, **again)
    with pytest.raises(RankError, match=r"lora.load=.*is for a base with digest \w{12}…, model"):
        train(other)
    # Of peft's own folders the base is not known: this one begins.
    plain = shutil.copytree(adapter, tmp_path / "plain")
    (plain / "llm_train.json").unlink()
    train(document_of(tmp_path / "other", data, tmp_path / "fourth", plain, **again))


def test_several_scalings_are_those_that_a_run_began_with(base, tmp_path):
    """A resume reads them again, where a checkpoint was of others it is refused."""
    data = write_samples(tmp_path / "data", CHATS)
    adapter = write_by_peft(base, tmp_path / "peft", **PATTERNS)
    made = document_of(base, data, tmp_path / "run", adapter)
    train(made)
    path = adapter / "adapter_config.json"
    document = json.loads(path.read_text())
    document["alpha_pattern"]["v_proj"] = 3
    path.write_text(json.dumps(document))
    made["train"]["max_steps"] += 1
    with pytest.raises(
        RankError, match=r"have lora load's scalings, with digest \w+, this run has"
    ):
        train(made)
    made = document_of(base, data, tmp_path / "other", adapter, overlap=True)
    with pytest.raises(
        RankError,
        match=r"self_attention.linear_qkv have scalings 0.75, 6.0, which is not built",
    ):
        train(made)


def test_a_folder_that_says_otherwise_is_refused(base, made_by_peft, tmp_path):
    data = write_samples(tmp_path / "data", CHATS)
    for lora, message in (
        ({"rank": 8, "alpha": 24}, "its rank is 4, this run's lora has 8"),
        ({"alpha": 4}, r"its alpha / rank \(or √rank\) is 3.0, this run's lora has 1.0"),
        ({"dora": True}, "its dora is False, this run's lora has True"),
        (
            {"target_modules": ["linear_qkv"]},
            "adapts or has whole 6 modules that .* do not, decoder.layers.0.mlp.linear_fc1",
        ),
        (
            {"target_modules": [*LINEARS, "output_layer"]},
            "has no adapter of output_layer, which lora.target_modules names",
        ),
    ):
        made = document_of(base, data, tmp_path / "run", made_by_peft, **lora)
        with pytest.raises(RankError, match=message):
            train(made)
