"""Every task from the command line: handlers by name, aliases, templates, verify and inspect."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from chat_templates import CHATML, of_transformers
from chat_tokenizers import byte_level
from llm_data.cli import main
from llm_data.templates import library_names

ALPACA = [
    {"instruction": f"say {n}", "input": "twice" * (n % 2), "output": f"{n} {n}"} for n in range(9)
]
PAIRS = [
    {"instruction": f"say {n}", "input": "", "chosen": "good", "rejected": "bad"} for n in range(9)
]
STEPS = [{"input": "one ки two ки", "value": ["+", "-"]}]
SHAREGPT = [
    {"conversations": [{"from": "human", "value": f"say {n}"}, {"from": "gpt", "value": str(n)}]}
    for n in range(9)
]


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    """With the steps' marks as tokens."""
    folder = tmp_path / "chat_tokenizer"
    loaded = of_transformers(byte_level(), CHATML)
    loaded.add_tokens(["ки", " ки"])
    loaded.save_pretrained(folder)
    return folder


def preprocessed(folder: Path, tokenizer: Path, records, *words):
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return run(
        *("preprocess", "--input", path, "--tokenizer-name-or-path", tokenizer, "--workers", 1),
        *("--output-prefix", folder / "d", *words),
    )


@pytest.mark.parametrize(
    ("handler", "records", "words", "columns"),
    [
        (
            "AlpacaStyleInstructionHandler",
            ALPACA,
            ["--prompt-type", "qwen"],
            ["attention_mask", "input_ids", "labels"],
        ),
        (
            "SharegptStyleInstructionHandler",
            SHAREGPT,
            ["--prompt-type", "chatml", "--enable-thinking", "true", "--seq-length", 64, "--pack"],
            ["attention_mask", "input_ids", "labels"],
        ),
        (
            "AlpacaStylePairwiseHandler",
            PAIRS,
            ["--prompt-type", "llama3"],
            ["chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels"],
        ),
        (
            "R1AlpacaStyleInstructionHandler",
            ALPACA,
            ["--prompt-type", "qwen_r1", "--dataset-additional-keys", "labels"],
            ["attention_mask", "input_ids", "labels"],
        ),
        (
            "AlpacaStyleProcessRewardHandler",
            STEPS,
            ["--placeholder-token", "ки", "--reward-tokens", "+", "-"],
            ["attention_mask", "input_ids", "labels"],
        ),
    ],
)
def test_a_handlers_name_and_mindspeeds_options_are_enough(
    tmp_path, tokenizer, handler, records, words, columns
):
    """Columns as in the predecessor's documentation; then verify and inspect."""
    result = preprocessed(tmp_path, tokenizer, records, "--handler-name", handler, *words)
    assert result.exit_code == 0, result.output
    found = sorted(path.name for path in tmp_path.glob("d_packed_*_document.idx"))
    assert found == [f"d_packed_{column}_document.idx" for column in columns]
    checked = run("verify", tmp_path / "d")
    assert (checked.exit_code, checked.output[:4]) == (0, "ok: "), checked.output
    shown = run("inspect", tmp_path / "d", "--tokenizer", tokenizer, "--rows", 1)
    assert shown.exit_code == 0, shown.output
    assert json.loads((tmp_path / "d_packed.json").read_text())["num_samples"] == len(records)


def test_a_pretraining_handler_makes_a_text_of_a_record(tmp_path, tokenizer):
    result = preprocessed(
        tmp_path, tokenizer, SHAREGPT, "--handler-name", "SharegptPretrainHandler"
    )
    assert result.exit_code == 0, result.output
    shown = run("inspect", tmp_path / "d", "--tokenizer", tokenizer, "--documents", 1)
    assert "say 00" in shown.output
    manifest = json.loads((tmp_path / "d_text_document.json").read_text())
    assert manifest["options"]["format"] == "sharegpt"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--handler-name", "AlpacaStyleInstructonHandler"], "AlpacaStyleInstructionHandler"),
        (
            ["--handler-name", "AlpacaStylePairwiseHandler", "--task", "sft", "--template", "qwen"],
            "has no meaning with --task sft, want --task pairwise",
        ),
        (["--handler-name", "LlamaFactoryInstructionHandler"], "--template"),
        (
            ["--handler-name", "LlamaFactoryInstructionHandler", "--prompt-type", "qwen"],
            "LlamaFactoryInstructionHandler needs --dataset-dir",
        ),
        (["--task", "sft", "--template", "qwem"], "qwen"),
        (["--map-keys", '{"prompt": "x"}'], "--map-keys has no meaning for a text"),
    ],
)
def test_a_wrong_name_is_an_error_with_the_choices(tmp_path, tokenizer, words, says):
    """The predecessor took its pretraining handler for a name it did not know."""
    result = preprocessed(tmp_path, tokenizer, [*ALPACA, {"x": 1}], *words)
    assert result.exit_code == 2, result.output
    assert says in " ".join(result.output.split())
    assert not list(tmp_path.glob("d_*"))


def test_a_dataset_info_describes_its_entries(tmp_path, tokenizer):
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(each) + "\n" for each in SHAREGPT))
    info = {"mine": {"file_name": "mine.jsonl", "formatting": "sharegpt"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    result = run(
        *("preprocess", "mine", "--dataset-dir", tmp_path, "--tokenizer", tokenizer),
        *("--handler-name", "LlamaFactoryInstructionHandler", "--prompt-type", "qwen"),
        *("--output", tmp_path / "d"),
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "d_packed.json").read_text())["num_samples"] == 9


def test_backends_do_not_change_a_byte_of_a_chat_dataset(tmp_path, tokenizer):
    made = {}
    for backend in ("hf", "gigatoken"):
        folder = tmp_path / backend
        folder.mkdir()
        words = ["--task", "sft", "--template", "qwen", "--tokenizer-backend", backend]
        result = preprocessed(folder, tokenizer, SHAREGPT, *words)
        assert result.exit_code == 0, result.output
        made[backend] = [path.read_bytes() for path in sorted(folder.glob("d_*.bin"))]
    assert made["hf"] == made["gigatoken"]
    assert "with gigatoken" in (tmp_path / "gigatoken/d_packed.json").read_text()


def test_the_drops_are_printed_as_a_table(tmp_path, tokenizer):
    bad = [{"conversations": [{"from": "alien", "value": "x"}]}, *SHAREGPT]
    words = ["--task", "sft", "--template", "qwen", "--on-error", "skip", "--seq-length", 200]
    long = {
        "conversations": [{"from": "human", "value": "x1 y2 " * 99}, {"from": "gpt", "value": "y"}]
    }
    result = preprocessed(tmp_path, tokenizer, [*bad, long, long], *words)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    for row in (["too_long", "2"], ["unknown_role", "1"], ["all", "3"]):
        assert row in lines


def test_templates_lists_every_one_and_renders_what_is_learned():
    listed = run("templates")
    assert listed.exit_code == 0, listed.output
    first = {line.split()[0] for line in listed.output.splitlines() if line.strip()}
    assert set(library_names()) <= first
    shown = run("templates", "qwen3")
    assert "Two.<|im_end|>⟧" in shown.output
    refused = run("templates", "qwem3")
    assert (refused.exit_code, "qwen3" in refused.output) == (2, True)
