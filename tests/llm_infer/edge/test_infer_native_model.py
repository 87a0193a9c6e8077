"""Folders of every format on the native engine, through the command line as a user would."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner

from ckpt_zoo import CASES, Case
from llm_ckpt.cli import main as llm_ckpt
from llm_infer.cli import main
from tiny_lm import edit_json, make_tokenizer

PROMPT = "def read(path):"


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def generate(model, *arguments):
    return run(
        "generate", model, "--device", "cpu", "--prompt", PROMPT, "--max-new-tokens", 20, *arguments
    )


def convert(source, target, *arguments):
    words = ["convert", str(source), "--output", str(target), "--to", "mcore", *arguments]
    result = CliRunner().invoke(llm_ckpt, words)
    assert result.exit_code == 0, result.output
    return target


@pytest.mark.parametrize(
    "layout", [("--layout", "v1", "--tp", "2", "--pp", "2"), ("--layout", "v2")], ids=["v1", "v2"]
)
def test_megatron_checkpoints_as_they_lie_give_the_text_of_the_hf_folder(models, tmp_path, layout):
    folder = models["qwen3"]
    there = convert(folder, tmp_path / "mcore", *layout)
    expected, found = generate(folder), generate(there)
    assert found.exit_code == 0, found.output
    assert "engine: native on cpu" in found.stderr
    assert found.stdout == expected.stdout
    assert len(found.stdout) > 10


def test_a_model_that_chooses_keys_takes_operators_of_another_package(tmp_path):
    case = next(case for case in CASES if case.id == "deepseek_v32")
    folder = Case(case.family, {**case.config, "vocab_size": 320}).save(tmp_path / "m")
    make_tokenizer(folder)
    found = generate(folder)
    assert "engine: native on cpu" in found.stderr
    assert found.stdout == generate(folder, "--engine", "transformers").stdout
    others = generate(folder, "--kernels", "llm-kernels-npu")
    assert "dsa_indexer torch, sparse_attention torch" in others.stderr
    assert others.stdout == found.stdout


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_weights_of_two_bytes_are_computed_with_in_float32(models, tmp_path, stored):
    """The text of transformers with the same weights in float32, whoever computes."""
    from transformers import AutoModelForCausalLM

    folder = shutil.copytree(models["qwen3"], tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, stored))
    model.save_pretrained(folder)
    expected = generate(folder, "--engine", "transformers", "--dtype", "float32")
    found = generate(folder)
    assert found.stdout == expected.stdout
    assert len(found.stdout) > 10
    assert f"native on cpu, {stored} weights, float32, kernels compiled" in found.stderr
    assert generate(folder, "--dtype", "float32").stdout == expected.stdout
    for arguments in (("--dtype", stored), ("--kernels", "torch")):
        other = generate(folder, *arguments)
        assert other.exit_code == 0, other.output
        assert "kernels plain torch" in other.stderr


def test_the_named_engine_runs(models):
    assert (
        "engine: transformers on cpu"
        in generate(models["llama"], "--engine", "transformers").stderr
    )
    native = generate(models["llama"], "--engine", "native", "--kernels", "llm-kernels-npu")
    assert "rms_norm torch, swiglu torch, rope torch" in native.stderr
    assert native.stdout == generate(models["llama"]).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--kernels", "nothing"), "kernels nothing: no provider of 'llm_infer.kernels'"),
        (("--engine", "transformers", "--rope-scaling", "yarn:4"), "only the native engine"),
        (("--engine", "transformers", "--num-beams", "2"), "has no beam search"),
        (("--rope-scaling", "yarn:none"), "found factor 'none', want a number from 1 on"),
        (("--rope-scaling", "ntk:2"), "KIND one of dynamic, linear, yarn"),
        (("--lora", "/nowhere"), "/nowhere"),
        (("--engine", "transformers", "--tp", "2"), "--tp: only the native engine"),
        (("--tp", "3"), "attention.heads(4) % tp(3) = 1, want 0"),
    ],
)
def test_what_cannot_be_had_is_an_error(models, arguments, said):
    result = generate(models["llama"], *arguments)
    assert result.exit_code == 1
    assert said in result.stderr


def test_a_checkpoint_without_a_tokenizer_says_so(models, tmp_path):
    there = convert(models["llama"], tmp_path / "mcore", "--layout", "v2")
    for path in there.glob("tokenizer*"):
        path.unlink()
    result = generate(there)
    assert result.exit_code == 1
    assert "no tokenizer; want one of tokenizer.json" in result.stderr


def test_an_adapter_gives_the_text_of_pefts_merge(models, tmp_path):
    import peft
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(models["llama"], dtype=torch.float32)
    config = peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "down_proj"])
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = shutil.copytree(models["llama"], tmp_path / "merged")
    adapted.merge_and_unload().save_pretrained(merged)
    found = generate(models["llama"], "--lora", tmp_path / "adapter")
    assert found.stdout == generate(merged, "--engine", "transformers").stdout
    assert found.stdout != generate(models["llama"]).stdout
    # The same from a Megatron checkpoint, each of two ranks with its slices.
    there = convert(models["llama"], tmp_path / "mcore", "--layout", "v1", "--pp", "2")
    divided = generate(there, "--lora", tmp_path / "adapter", "--tp", 2)
    assert "engine: native on 2 ranks on cpu" in divided.stderr
    assert divided.stdout == found.stdout


def test_yarn_on_a_model_without_it_is_transformers_yarn(models, tmp_path):
    """A context four times the trained one; the prompt alone is longer than that was."""
    folder = shutil.copytree(models["llama"], tmp_path / "m")
    edit_json(
        folder / "config.json",
        max_position_embeddings=256,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    )
    long = ("--prompt", PROMPT * 12)
    found = generate(models["llama"], "--rope-scaling", "yarn:4", *long)
    assert found.exit_code == 0, found.output
    assert found.stdout == generate(folder, "--engine", "transformers", *long).stdout


def test_dynamic_scaling_on_a_model_without_it_is_transformers_dynamic(models, tmp_path):
    folder = shutil.copytree(models["llama"], tmp_path / "m")
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    edit_json(folder / "config.json", rope_parameters=rope)
    long = ("--prompt", PROMPT * 12)
    found = generate(models["llama"], "--rope-scaling", "dynamic:4", *long)
    assert found.exit_code == 0, found.output
    assert found.stdout == generate(folder, *long).stdout
    assert found.stdout == with_transformers(folder, PROMPT * 12, new_tokens=20)
    refused = generate(models["llama"], *long)
    assert refused.exit_code == 1
    assert "context of 64 leaves no room for an answer" in refused.stderr


def with_transformers(folder, prompt, *, new_tokens):
    """The text of the library itself: our engine of that name stops at the trained length."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = tokenizer(prompt, return_tensors="pt").input_ids
    whole = model.generate(tokens, do_sample=False, max_new_tokens=new_tokens)
    return tokenizer.decode(whole[0, tokens.shape[1] :], skip_special_tokens=True) + "\n"


def test_a_file_of_prompts_is_answered_as_one_by_one(models, tmp_path):
    texts = ["a", "Grüße aus", "你好", "def read(", "0123"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"prompt": t}) + "\n" for t in texts))
    words = ["--device", "cpu", "--max-new-tokens", "12", "--temperature", "1.0", "--seed", "3"]
    many = ["--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl", "--stop", "e"]
    result = run("generate", models["qwen3"], *words, *many)
    assert result.exit_code == 0, result.output
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for number, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        words[-1] = str(3 + number)
        one = run("generate", models["qwen3"], *words, "--prompt", text, "--json", "--stop", "e")
        expected = json.loads(one.stdout)
        for key in ("text", "finish_reason", "num_prompt_tokens", "num_tokens"):
            assert answer[key] == expected[key]


def test_bench_prints_both_measurements(models):
    words = ("--prompt-tokens", 20, "--new-tokens", 8, "--requests", 3, "--device", "cpu")
    result = run("bench", models["llama"], *words)
    assert result.exit_code == 0, result.output
    one, many = result.stdout.splitlines()
    assert one.startswith("one request: first token after")
    assert many.startswith("3 requests together: first token after")
    long = run("bench", models["llama"], "--prompt-tokens", 60, "--new-tokens", 8)
    assert long.exit_code == 1
    assert "--prompt-tokens(60) + --new-tokens(8) = 68, but the context is 64" in long.stderr


def test_8_bit_weights_by_option_and_where_they_do_not_apply(models):
    found = generate(models["qwen3"], "--quantization", "int8", "--dtype", "float32")
    assert found.exit_code == 0, found.output
    assert "engine: native on cpu, int8 weights, float32" in found.stderr
    assert len(found.stdout) > 10
    refused = generate(models["qwen3"], "--quantization", "int8", "--engine", "transformers")
    assert refused.exit_code == 1
    assert "--quantization: only the native engine has this; use --engine native" in refused.stderr
    unknown = generate(models["qwen3"], "--quantization", "int3")
    assert unknown.exit_code == 2
    assert "'int3' is not 'int8'" in unknown.stderr
