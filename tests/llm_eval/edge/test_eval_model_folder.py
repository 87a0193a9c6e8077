import json
import shutil

import pytest

from llm_eval.edge.model_folder import check, digest, load
from llm_eval.errors import EvalError
from tiny_lm import edit_json, make_tokenizer


@pytest.fixture
def folder(models, tmp_path):
    return shutil.copytree(models["llama"], tmp_path / "m")


def test_a_good_folder_passes(folder):
    check(folder)


def test_no_folder(tmp_path):
    with pytest.raises(EvalError, match="no such model folder"):
        check(tmp_path / "nowhere")


def test_no_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(EvalError, match=r"no config.json; want a Hugging Face"):
        check(folder)


def test_a_megatron_folder_names_the_scorer_that_reads_it_and_the_command_that_converts(folder):
    (folder / "config.json").unlink()
    (folder / "latest_checkpointed_iteration.txt").write_text("1")
    said = r"(?s)use --scorer llm-infer.*llm-ckpt convert \S+/m --to hf --output \S+/m-hf"
    with pytest.raises(EvalError, match=said):
        check(folder)


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(EvalError, match=r"no \*.safetensors"):
        check(folder)


def test_a_missing_shard_is_named(folder):
    weight_map = {"a": "model.safetensors", "b": "model-2.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(EvalError, match=r"1 of 2 shards missing, first model-2.safetensors"):
        check(folder)


def test_no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(EvalError, match=r"no tokenizer; want one of tokenizer.json"):
        check(folder)


def test_a_truncated_weight_file(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(EvalError, match="cannot be loaded"):
        load(folder, device="cpu", dtype="auto")


def test_weights_that_do_not_fit_the_config_are_not_made_up(folder):
    edit_json(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(EvalError, match=r"missing keys: model.layers.2.*do not fit config.json"):
        load(folder, device="cpu", dtype="auto")


def test_a_tokenizer_larger_than_the_model(folder):
    make_tokenizer(folder, vocab_size=330)
    with pytest.raises(EvalError, match=r"tokenizer has \d+ tokens, the model 320"):
        load(folder, device="cpu", dtype="auto")


def test_an_added_token_beyond_the_model_is_refused_where_a_text_has_it(folder):
    from transformers import AutoTokenizer

    from llm_eval.harness.hf_engine import HFEngine

    tokenizer = AutoTokenizer.from_pretrained(folder)
    number = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    model, tokenizer = load(folder, device="cpu", dtype="auto")
    model.resize_token_embeddings(number)
    engine = HFEngine(model, tokenizer)
    (work,) = engine.plan("loglikelihood", [("Grüße", " aus")])
    assert len(engine.score(work)) == 1
    asked = {"until": ["x"], "max_gen_toks": 2}
    refused = rf"token '<pad>' \({number}\) has no row in .* {number}"
    for kind, request in (
        ("loglikelihood", ("Grüße <pad>", " aus")),
        ("generate_until", ("Grüße <pad>", asked)),
    ):
        with pytest.raises(EvalError, match=refused):
            list(engine.plan(kind, [request]))


def test_a_tokenizer_without_start_and_end(folder):
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(EvalError, match="neither bos_token nor eos_token"):
        load(folder, device="cpu", dtype="auto")


def test_digest_sees_a_changed_weight(folder):
    before = digest(folder)
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert digest(folder) != before


def test_digest_ignores_where_the_folder_lies(models, folder):
    assert digest(folder) == digest(models["llama"])


def test_digest_sees_a_changed_weight_of_a_megatron_checkpoint(tmp_path):
    file = tmp_path / "iter_0000012" / "mp_rank_00" / "model_optim_rng.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("12\n")
    before = digest(tmp_path)
    file.write_bytes(b"Weights")
    assert digest(tmp_path) != before
