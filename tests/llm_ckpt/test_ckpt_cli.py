"""The command line as a user meets it: output, exit codes, errors without tracebacks."""

import json
import resource
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from ckpt_models import read_tensors
from llm_ckpt.cli import main

MODEL = {
    "model_type": "qwen3",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.05,
}


@pytest.fixture
def llm_ckpt():
    """Runs the command; checks the exit code."""

    def run(*args, code=0):
        result = CliRunner().invoke(main, [str(arg) for arg in args])
        assert result.exit_code == code, result.output
        return result.output

    return run


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.json"
    path.write_text(json.dumps(MODEL))
    return path


@pytest.fixture
def tokenizer(tmp_path):
    """A folder as llm-data writes it: 4 ids, one special."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    document = {
        "version": "1.0",
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2}},
        "added_tokens": [{"id": 3, "content": "<|end|>"}],
    }
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return folder


def test_quickstart_commands(llm_ckpt, model, tokenizer, tmp_path):
    hf, mcore, back = (tmp_path / name for name in ("hf-init", "mcore-init", "hf-trained"))
    llm_ckpt("init", model, "--tokenizer", tokenizer, "--output", hf, "--seed", "1234")
    llm_ckpt("convert", hf, "--output", mcore, "--to", "mcore", "--tp", "2")
    llm_ckpt("convert", mcore, "--output", back, "--to", "hf")
    assert "tensors equal, bit by bit" in llm_ckpt("verify", hf, mcore)
    assert "tensors equal, bit by bit" in llm_ckpt("verify", hf, back)
    assert "already done" in llm_ckpt("convert", hf, "--output", mcore, "--to", "mcore", "--tp", 2)
    assert (back / "tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()
    assert json.loads((hf / "generation_config.json").read_text())["eos_token_id"] == 3


def test_init_has_the_distribution_of_transformers_and_loads_there(llm_ckpt, model, tmp_path):
    import transformers

    llm_ckpt("init", model, "--output", tmp_path / "a", "--seed", 7)
    llm_ckpt("init", model, "--output", tmp_path / "b", "--seed", 7)
    llm_ckpt("init", model, "--output", tmp_path / "c", "--seed", 8, "--dtype", "bfloat16")
    a, b, c = (read_tensors(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    embedding = a["model.embed_tokens.weight"]
    assert embedding.std().item() == pytest.approx(0.05, rel=0.02)
    assert embedding.mean().abs() < 0.002
    assert a["model.norm.weight"].eq(1).all()
    assert c["lm_head.weight"].dtype == torch.bfloat16
    assert not torch.equal(c["lm_head.weight"].float(), a["lm_head.weight"])
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert loaded.config.initializer_range == 0.05
    assert torch.equal(loaded.lm_head.weight, a["lm_head.weight"])


def test_init_from_arch_json(llm_ckpt, golden_text, tmp_path):
    (tmp_path / "arch.json").write_text(golden_text("llama_tiny"))
    llm_ckpt("init", tmp_path / "arch.json", "--output", tmp_path / "hf")
    assert json.loads(llm_ckpt("arch", tmp_path / "hf")) == json.loads(golden_text("llama_tiny"))


def test_init_refuses_a_tokenizer_with_more_ids_than_rows(llm_ckpt, model, tokenizer, tmp_path):
    model.write_text(json.dumps(MODEL | {"vocab_size": 3}))
    text = llm_ckpt("init", model, "--tokenizer", tokenizer, "--output", tmp_path / "x", code=1)
    assert "vocab_size(3) < 4" in text


def test_verify_names_each_difference(llm_ckpt, hf_folder, convert, tmp_path):
    from safetensors.torch import save_file

    from ckpt_models import save_model

    other = save_model(tmp_path / "other", "qwen3")
    tensors = read_tensors(other)
    tensors["model.layers.1.mlp.up_proj.weight"][5, 5] += 0.25
    tensors["model.norm.weight"] = tensors["model.norm.weight"].bfloat16()
    save_file(tensors, other / "model.safetensors")
    text = llm_ckpt("verify", hf_folder("qwen3"), other, code=1)
    assert (
        "decoder.layers.1.mlp.linear_fc1.weight: 1 of 12288 values differ, at most by 0.25" in text
    )
    assert "decoder.final_layernorm.weight: dtype torch.float32 against torch.bfloat16" in text
    assert "2 differences" in text


def test_verify_sees_signs_of_zero_and_nan_bits(llm_ckpt, tmp_path):
    from safetensors.torch import save_file

    from ckpt_models import save_model

    for name, value in (("a", 0.0), ("b", -0.0)):
        folder = save_model(tmp_path / name, "qwen3")
        tensors = read_tensors(folder)
        tensors["model.norm.weight"][0] = value
        save_file(tensors, folder / "model.safetensors")
    text = llm_ckpt("verify", tmp_path / "a", tmp_path / "b", code=1)
    assert "decoder.final_layernorm.weight: 1 of 64 values differ in their bits" in text


def test_verify_of_one_checks_its_checksums(llm_ckpt, hf_folder, convert, tmp_path):
    convert(hf_folder("qwen3"), tmp_path / "v2", "v2")
    assert "agree with their checksums" in llm_ckpt("verify", tmp_path / "v2")
    path = tmp_path / "v2/iter_0000001/__0_0.distcp"
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)
    assert "__0_0.distcp: sha256" in llm_ckpt("verify", tmp_path / "v2", code=1)


def test_plan_lists_files_and_writes_nothing(llm_ckpt, hf_folder, tmp_path):
    source = hf_folder("qwen3")
    text = llm_ckpt("plan", source, "--to", "mcore", "--tp", 2, "--pp", 2)
    assert "mp_rank_01_001/model_optim_rng.pt" in text
    assert "4 files" in text
    assert "vocabulary padded to 256 rows" in text
    args = ("--to", "mcore", "--output", tmp_path / "x", "--plan-only")
    assert "1 files" in llm_ckpt("convert", source, *args)
    assert list(tmp_path.iterdir()) == []
    assert "Error: layers(4) % (pp(3)" in llm_ckpt(
        "plan", source, "--to", "mcore", "--pp", 3, code=1
    )


def test_context_parallelism_is_accepted_and_told_to_change_nothing(llm_ckpt, hf_folder, tmp_path):
    source = hf_folder("qwen3")
    text = llm_ckpt("convert", source, "--to", "mcore", "--cp", 2, "--output", tmp_path / "a")
    assert "--cp: context parallelism divides no weight" in text
    llm_ckpt("convert", source, "--to", "mcore", "--output", tmp_path / "b")
    rank = "iter_0000001/mp_rank_00/model_optim_rng.pt"
    assert (tmp_path / "a" / rank).read_bytes() == (tmp_path / "b" / rank).read_bytes()


def test_a_plan_of_v2_says_how_layers_are_keyed(llm_ckpt, hf_folder):
    args = ("plan", hf_folder("qwen3"), "--to", "mcore", "--layout", "v2")
    assert "v2 keys: layers stacked" in llm_ckpt(*args)
    assert "v2 keys: one key a layer" in llm_ckpt(*args, "--per-layer-keys")


def test_layout_options_reach_the_files(llm_ckpt, hf_folder):
    args = ("plan", hf_folder("qwen3"), "--to", "mcore")
    text = llm_ckpt(*args, "--pp", 2, "--layers-per-chunk", 1, "--transformer-impl", "local")
    assert "mp_rank_00_001" in text
    text = llm_ckpt(*args, "--pp", 2, "--schedule", "dualpipev", "--dialect", "mindspeed")
    assert "2 files" in text
    text = llm_ckpt(*args, "--pp", 2, "--noop-layers", "0,5", "--vpp", 3, "--tp", 2)
    assert "4 files" in text
    text = llm_ckpt(*args, "--noop-layers", "0,9", code=1)
    assert "noop layer 9 is not in 0..5" in text
    text = llm_ckpt(*args, "--etp", 2, code=1)
    assert "would hold the expert pieces 0 and 1" in text


def test_inspect_shows_every_parameter_once(llm_ckpt, hf_folder):
    text = llm_ckpt("inspect", hf_folder("qwen3"))
    assert text.count("linear_qkv") == 4
    assert "weight  [256, 64] float32" in text
    assert "35 parameters" in text


def test_families_are_listed(llm_ckpt):
    words = llm_ckpt("families").split()
    names, architectures = words[::2], words[1::2]
    assert len(set(names)) == len(names)
    listed = dict(zip(names, architectures, strict=True))
    assert listed["llama"] == "LlamaForCausalLM"
    assert listed["gpt_oss"] == "GptOssForCausalLM"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--to", "hf", "--tp", "2"], "for --layout v1"),
        (["--to", "hf", "--layout", "v1"], "--layout is for --to mcore"),
        (["--to", "mcore", "--layout", "v2", "--pp", "2"], "for --layout v1"),
        (
            ["--to", "mcore", "--layout", "v2", "--ep", "2", "--mla-mm-split"],
            "--ep, --mla-mm-split",
        ),
        (["--to", "mcore", "--per-layer-keys"], "--per-layer-keys is for --layout v2"),
        (["--to", "mcore", "--num-layer-list", "a,b"], "want whole numbers like 7,9"),
        (["--to", "mcore", "--tp", "0"], "--tp"),
    ],
)
def test_an_option_that_would_be_ignored_is_a_usage_error(
    args, message, llm_ckpt, hf_folder, tmp_path
):
    text = llm_ckpt("convert", hf_folder("qwen3"), "--output", tmp_path / "x", *args, code=2)
    assert message in text


def test_output_inside_the_source_is_refused(llm_ckpt, hf_folder):
    folder = hf_folder("qwen3")
    for output in (folder, folder / "x", folder.parent):
        text = llm_ckpt("convert", folder, "--output", output, "--to", "mcore", code=1)
        assert "must lie outside the source" in text


def test_errors_are_one_line_without_a_traceback(tmp_path):
    code = "import sys; from llm_ckpt.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "inspect", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr


def test_help_starts_fast_and_without_torch():
    code = (
        "import sys; from llm_ckpt.cli import main\n"
        "try: main(['convert', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules; assert 'pydantic' not in sys.modules"
    )
    start = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "Example: llm-ckpt convert" in result.stdout
    # CPU time of the child: what a user waits for on a machine that is not busy
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - start < 0.5
