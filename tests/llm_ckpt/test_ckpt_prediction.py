"""Prediction layers (MTP): left out by transformers, stored by their makers, copies and all."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from arch_decoder import predict
from ckpt_models import assert_same_folder, read_tensors
from ckpt_zoo import CASES
from llm_ckpt.cli import main
from llm_ckpt.errors import CheckpointError
from llm_ckpt.source import open_source

CASE = next(case for case in CASES if case.id == "glm4_moe")
LAYERS = CASE.config["num_hidden_layers"]
MTP = f"model.layers.{LAYERS}."
COPIES = {
    MTP + "embed_tokens.weight": "model.embed_tokens.weight",
    MTP + "shared_head.head.weight": "lm_head.weight",
}


@pytest.fixture
def bare(tmp_path):
    """A folder as transformers saves it: config.json promises a layer that is not there."""
    return CASE.save(tmp_path / "bare")


@pytest.fixture
def whole(bare, tmp_path):
    """The same with the layer, and the copies of embedding and head that makers store."""
    folder, path = tmp_path / "whole", bare / "model.safetensors"
    folder.mkdir()
    (folder / "config.json").write_text((bare / "config.json").read_text())
    tensors, hidden = load_file(path), CASE.config["hidden_size"]
    last = f"model.layers.{LAYERS - 1}."
    generator = torch.Generator().manual_seed(3)
    added = {
        MTP + name.removeprefix(last): torch.randn(tensor.shape, generator=generator) * 0.1
        for name, tensor in tensors.items()
        if name.startswith(last)
    }
    for name in ("enorm", "hnorm", "shared_head.norm"):
        added[f"{MTP}{name}.weight"] = torch.rand(hidden, generator=generator) + 0.5
    added[MTP + "eh_proj.weight"] = torch.randn(hidden, 2 * hidden, generator=generator) * 0.1
    copies = {copy: tensors[of].clone() for copy, of in COPIES.items()}
    save_file({**tensors, **added, **copies}, folder / "model.safetensors", {"format": "pt"})
    return folder


def change(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_a_folder_without_its_prediction_layers_opens_and_says_so(bare):
    assert json.loads((bare / "config.json").read_text())["num_nextn_predict_layers"] == 1
    with open_source(bare) as source:
        assert source.arch["mtp"] is None
        assert not [name for name in source.names() if name.startswith("mtp.")]
        (note,) = source.notes
    assert note == (
        f"{bare}: config.json says 1 prediction layers (MTP), but no tensor of theirs is stored; "
        "they are left out"
    )


def test_the_note_is_on_stderr_and_the_written_config_promises_nothing(bare, tmp_path):
    config = json.loads((bare / "config.json").read_text()) | {"eos_token_id": [5, 7]}
    (bare / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    result = CliRunner().invoke(main, ["convert", str(bare), "--output", str(out), "--to", "hf"])
    assert result.exit_code == 0, result.output
    assert "they are left out" in result.stderr
    assert "they are left out" not in result.stdout
    written = json.loads((out / "config.json").read_text())
    assert written == config | {"num_nextn_predict_layers": 0}
    assert_same_folder(bare, out)
    with open_source(out) as source:
        assert source.notes == ()


def test_the_arch_command_says_what_is_stored(bare, whole):
    for folder, wanted in ((bare, None), (whole, {"layers": 1})):
        result = CliRunner().invoke(main, ["arch", str(folder)])
        assert json.loads(result.stdout)["mtp"] == wanted


def test_stored_prediction_layers_come_back_bit_by_bit_with_their_copies(whole, convert, tmp_path):
    with open_source(whole) as source:
        assert source.notes == ()
        assert source.arch["mtp"] == {"layers": 1}
        head = source.read("mtp.layers.0.transformer_layer.mlp.router.expert_bias")
        assert torch.equal(head, read_tensors(whole)[MTP + "mlp.gate.e_score_correction_bias"])
    convert(whole, tmp_path / "v1", "v1", pp=2, tp=2)
    convert(tmp_path / "v1", tmp_path / "v2", "v2")
    convert(tmp_path / "v2", tmp_path / "hf", "hf")
    assert_same_folder(whole, tmp_path / "hf")


def test_copies_need_not_be_stored(whole):
    change(whole, lambda tensors: [tensors.pop(copy) for copy in COPIES])
    with open_source(whole) as source:
        assert source.arch["mtp"] == {"layers": 1}


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_that_differs_is_refused(whole, copy):
    change(whole, lambda tensors: tensors[copy][3].add_(1.0))
    with (
        open_source(whole) as source,
        pytest.raises(CheckpointError, match=rf"{copy} differs from {COPIES[copy]}"),
    ):
        [source.read(name) for name in source.names()]


def test_half_a_prediction_layer_is_missing_tensors(whole):
    change(whole, lambda tensors: tensors.pop(MTP + "enorm.weight"))
    with pytest.raises(CheckpointError, match=rf"1 tensors are missing: {MTP}enorm.weight"):
        open_source(whole)


def test_a_prediction_layer_gives_the_logits_of_transformers(whole):
    from transformers import AutoModelForCausalLM
    from transformers.modeling_layers import MtpModel

    tokens = torch.randint(0, 250, (2, 24), generator=torch.Generator().manual_seed(1))
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(whole, **options).eval()
    # Transformers knows prediction layers by the numbers they have in released models.
    model._keys_to_ignore_on_load_unexpected = [MTP.replace(".", r"\.") + ".*"]
    layers = MtpModel.from_pretrained(model).eval()
    with torch.no_grad():
        hidden = model.model(tokens, use_cache=False).last_hidden_state[:, :-1]
        place = torch.arange(1, 24).expand(2, -1)
        hidden = layers.forward_layer(0, hidden, place, None, input_ids=tokens[:, 1:])
        wanted = model.lm_head(hidden)
    with open_source(whole) as source:
        (found,) = predict(source.arch, source.read, source.names(), tokens)
    difference = (found - wanted).abs().max().item()
    print(
        f"prediction layer: max logits difference {difference:.1e}, scale {wanted.abs().max():.1f}"
    )
    assert difference <= 1e-4
