import json
import os
import shutil

import pytest
from click.testing import CliRunner

from llm_infer.cli import main
from llm_infer.edge.local import LocalSpeaker
from tiny_lm import edit_json

PROMPT = "def read("


def _run(*arguments, stdin=None):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def _generate(model, *arguments):
    return _run("generate", model, "--device", "cpu", *arguments)


def _expected(folder, prompt, count, **settings):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    settings = {"do_sample": False, "max_new_tokens": count, "pad_token_id": 0, **settings}
    new = model.generate(ids, **settings)[0]
    return tokenizer.decode(new[ids.shape[1] :], skip_special_tokens=True)


def test_the_streamed_text_is_that_of_transformers(models):
    result = _generate(models["qwen3"], "--prompt", PROMPT, "--max-new-tokens", 20)
    assert result.exit_code == 0, result.output
    assert result.stdout == _expected(models["qwen3"], PROMPT, 20) + "\n"
    assert result.stderr.startswith("engine: native on cpu, float32, kernels ")
    assert ", cache of " in result.stderr
    assert "+ 20 tokens" in result.stderr
    assert "ended by length" in result.stderr


def test_beams_give_the_text_of_transformers_alone_and_from_a_file(models, tmp_path):
    beams = ("--max-new-tokens", 12, "--num-beams", 3, "--length-penalty", 0.5)
    settings = {"num_beams": 3, "length_penalty": 0.5}
    alone = _generate(models["qwen3"], "--prompt", PROMPT, *beams)
    assert alone.exit_code == 0, alone.output
    assert alone.stdout == _expected(models["qwen3"], PROMPT, 12, **settings) + "\n"
    assert alone.stdout != _expected(models["qwen3"], PROMPT, 12) + "\n"
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{"prompt": "def"}\n')
    files = ("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    assert _generate(models["qwen3"], *files, *beams).exit_code == 0
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    theirs = [_expected(models["qwen3"], prompt, 12, **settings) for prompt in ("a", "def")]
    assert [answer["text"] for answer in answers] == theirs


def _scored(folder, prompt, num_beams, num_texts):
    """Texts and scores of transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    found = AutoModelForCausalLM.from_pretrained(folder).generate(
        ids,
        do_sample=False,
        max_new_tokens=12,
        num_beams=num_beams,
        num_return_sequences=num_texts,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    texts = tokenizer.batch_decode(found.sequences[:, ids.shape[1] :], skip_special_tokens=True)
    return texts, found.sequences_scores.tolist()


def test_several_texts_of_a_search_come_with_scores(models, tmp_path):
    beams = ("--max-new-tokens", 12, "--num-beams", 4, "--num-return-sequences", 3)
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{"prompt": "def"}\n')
    files = ("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    assert _generate(models["qwen3"], *files, *beams).exit_code == 0
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for answer in answers:
        texts, scores = _scored(models["qwen3"], answer["prompt"], 4, 3)
        assert [one["text"] for one in answer["texts"]] == texts
        assert [one["score"] for one in answer["texts"]] == pytest.approx(scores, abs=1e-5)
        assert (answer["text"], answer["score"]) == (texts[0], answer["texts"][0]["score"])
    shown = _generate(models["qwen3"], "--prompt", "def", *beams)
    assert shown.stdout == "".join(f"{text}\n" for text in texts)
    assert shown.stderr.count("score -") == 3
    assert "?" not in shown.stderr


def test_more_beams_than_run_at_once_are_an_error(models):
    found = _generate(models["qwen3"], "--prompt", "a", "--num-beams", 65, "--max-new-tokens", 1)
    assert found.exit_code == 1
    assert "Error: num_beams: found 65, want at most 64, the texts that run at once" in found.stderr


def test_more_texts_than_beams_are_wrong_usage(models):
    found = _generate(models["qwen3"], "--prompt", PROMPT, "--num-return-sequences", 2)
    assert found.exit_code == 2
    assert "--num-return-sequences: found 2 with --num-beams 1" in found.stderr


def test_a_bias_is_that_of_transformers(models):
    biases = {32: 3.0, 65: -100.0, 12: 2.5, 300: 4.0}
    words = [word for token, bias in biases.items() for word in ("--logit-bias", f"{token}={bias}")]
    found = _generate(models["qwen3"], "--prompt", PROMPT, "--max-new-tokens", 20, *words)
    sequences = {(token,): bias for token, bias in biases.items()}
    assert found.stdout == _expected(models["qwen3"], PROMPT, 20, sequence_bias=sequences) + "\n"
    assert found.stdout != _expected(models["qwen3"], PROMPT, 20) + "\n"


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ("x=1", 2, "'x=1': want TOKEN=NUMBER, such as 42=-100"),
        ("3", 2, "'3': want TOKEN=NUMBER"),
        ("3=101", 2, "logit_bias: found 3: 101.0, want a token and a number in [-100, 100]"),
        ("3=nan", 2, "logit_bias: found 3: nan"),
        ("320=1", 1, "logit_bias: found token 320, want 0 to 319"),
    ],
)
def test_a_bias_that_cannot_be_says_why(models, given, code, said):
    found = _generate(models["qwen3"], "--prompt", PROMPT, "--logit-bias", given)
    assert found.exit_code == code
    assert said in found.stderr


def test_an_engine_without_beam_search_says_so(models):
    arguments = ("--prompt", PROMPT, "--num-beams", 2)
    refused = _generate(models["qwen3"], *arguments, "--engine", "transformers")
    assert refused.exit_code == 1
    assert "the transformers engine has no beam search; the native engine does" in refused.stderr


def test_json_holds_the_same_text_and_the_counts(models):
    result = _generate(models["llama"], "--prompt", PROMPT, "--max-new-tokens", 8, "--json")
    answer = json.loads(result.stdout)
    assert answer["text"] == _expected(models["llama"], PROMPT, 8)
    assert (answer["num_tokens"], answer["finish_reason"]) == (8, "length")


def test_a_stop_string_across_tokens_cuts_the_text(models):
    text = _expected(models["qwen3"], PROMPT, 20)
    stop = next(text[i : i + 3] for i in range(4, 12) if text.find(text[i : i + 3]) == i)
    result = _generate(
        models["qwen3"], "--prompt", PROMPT, "--max-new-tokens", 20, "--stop", stop, "--json"
    )
    answer = json.loads(result.stdout)
    assert answer["text"] == text[: text.index(stop)]
    assert answer["finish_reason"] == "stop"


def test_a_file_of_prompts_becomes_a_file_of_answers(models, tmp_path):
    prompts = [{"id": n, "prompt": p} for n, p in enumerate(["a", "Grüße", "你好"])]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    output = tmp_path / "new" / "out.jsonl"
    result = _generate(
        models["qwen3"], "--input", tmp_path / "in.jsonl", "--output", output, "--max-new-tokens", 6
    )
    assert result.exit_code == 0, result.output
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert [answer["id"] for answer in answers] == [0, 1, 2]
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer["text"] == _expected(models["qwen3"], prompt["prompt"], 6)


def test_a_failure_half_way_leaves_no_output(models, tmp_path):
    (tmp_path / "in.jsonl").write_text(
        '{"prompt": "a"}\n' + json.dumps({"prompt": "x" * 100}) + "\n"
    )
    result = _generate(
        models["llama"], "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl"
    )
    assert result.exit_code == 1
    assert "in.jsonl:2: the prompt has 100 tokens; the model's context of 64" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_bad_line_is_found_before_the_model_is_loaded(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{\n')
    result = _generate(
        tmp_path / "none", "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out"
    )
    assert result.exit_code == 1
    assert "in.jsonl:2: not JSON" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--prompt", "x", "--input", "y"),
        ("--input", "y"),
        ("--prompt", "x", "--output", "y"),
        ("--input", "y", "--output", "z", "--json"),
        ("--prompt", "x", "--temperature", "-1"),
        ("--prompt", "x", "--top-p", "0"),
        ("--prompt", "x", "--max-new-tokens", "0"),
        ("--prompt", "x", "--device", "tpu"),
        ("--prompt", "x", "--engine", "vllm"),
        ("--prompt", "x", "--stop", ""),
        ("--prompt", "x", "--min-p", "2"),
        ("--prompt", "x", "--frequency-penalty", "3"),
        ("--prompt", "x", "--cache-tokens", "0"),
        ("--prompt", "x", "--num-beams", "0"),
        ("--prompt", "x", "--num-beams", "2", "--length-penalty", "inf"),
        ("--prompt", "x", "--early-stopping", "true"),
    ],
)
def test_usage_errors_exit_2(arguments):
    assert _run("generate", "m", *arguments).exit_code == 2


def test_an_empty_prompt_is_refused(models):
    result = _generate(models["llama"], "--prompt", "")
    assert result.exit_code == 1
    assert "the prompt is empty" in result.stderr


def test_a_megatron_folder_names_the_command_that_converts_it(tmp_path):
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("1")
    result = _generate(tmp_path, "--prompt", "x", "--engine", "transformers")
    assert result.exit_code == 1
    assert f"llm-ckpt convert {tmp_path} --to hf --output {tmp_path}-hf" in result.stderr


def test_weights_that_do_not_fit_the_config_are_not_made_up(models, tmp_path):
    folder = shutil.copytree(models["llama"], tmp_path / "m")
    edit_json(folder / "config.json", num_hidden_layers=3)
    result = _generate(folder, "--prompt", "x")
    assert result.exit_code == 1
    assert "missing keys: model.layers.2" in result.stderr


def test_a_device_that_is_not_there(models, monkeypatch):
    from llm_infer.edge import device

    monkeypatch.setattr(device, "available", lambda: ["cpu"])
    result = _run("generate", models["llama"], "--device", "cuda", "--prompt", "x")
    assert result.exit_code == 1
    assert result.stderr == "Error: device cuda: not on this machine; found cpu\n"


def test_what_is_not_text_is_an_error_that_says_where(models, tmp_path):
    prompt = _generate(models["qwen3"], "--prompt", "a\udcffb")
    assert prompt.exit_code == 1
    assert "Error: the prompt: character 2 is U+DCFF" in prompt.stderr
    (tmp_path / "in.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    files = ("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    assert "in.jsonl:2: not UTF-8 text at byte 28" in _generate(models["qwen3"], *files).stderr


def test_a_folder_as_output_is_refused_before_anything_is_computed(models, tmp_path, monkeypatch):
    monkeypatch.setattr(LocalSpeaker, "complete_all", None)
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    files = ("--input", tmp_path / "in.jsonl", "--output", tmp_path)
    assert "a folder, want the name of a file" in _generate(models["qwen3"], *files).stderr


def test_answers_go_through_pipes_and_links_that_stay_what_they_are(models, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("answers.jsonl")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    arguments = ("--input", tmp_path / "in.jsonl", "--max-new-tokens", 2, "--output")
    assert _generate(models["qwen3"], *arguments, pipe).exit_code == 0
    assert _generate(models["qwen3"], *arguments, link).exit_code == 0
    assert os.read(reader, 1 << 16) == (tmp_path / "answers.jsonl").read_bytes()
    assert (pipe.is_fifo(), link.is_symlink()) == (True, True)
    os.close(reader)
