"""The options of `llm-data preprocess`: several keys, contradictions, the predecessor's names."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from llm_data.cli import main
from llm_data.edge.console.options import configs_of
from llm_data.edge.console.sections import SectionOption
from llm_data.edge.datasets.token_dataset import open_token_dataset

README = Path(__file__).parents[4] / "packages/llm-data/README.md"

# `preprocess_data.py --help` of MindSpeed-LLM 2.3.0 and master.
_PAGE = """
--input --handler-name --json-keys --streaming --hf-datasets-params --dataset-dir --script-data-dir
--cache-dir --overwrite-cache --max-samples --seed --mix-strategy --interleave-probs
--split-sentences --keep-newlines --prompt-type --prompt-type-path --map-keys --enable-thinking
--dataset-additional-keys --reward-tokens --placeholder-token --reasoning-effort --drop-thinking
--data-obfuscation --obf-seed-content --tokenizer-type --tokenizer-name-or-path --tokenizer-model
--tokenizer-not-use-fast --vocab-file --merge-file --append-eod --seq-length
--make-vocab-size-divisible-by --pad-vocab-size-to --pack --neat-pack --pad-to-multiple-of
--output-prefix --dataset-impl --workers --n-subs --log-interval --merge-group-keys
"""
THEIRS = frozenset(re.findall(r"--[a-z-]+", _PAGE))


def run(*arguments):
    return CliRunner().invoke(main, ["preprocess", *map(str, arguments)])


@pytest.fixture
def two_keys(tmp_path) -> Path:
    path = tmp_path / "two.jsonl"
    path.write_text(
        "".join(json.dumps({"title": f"ka {n}", "body": f"lo mi {n} ter"}) + "\n" for n in range(5))
    )
    return path


def test_every_option_of_mindspeed_is_known():
    known = {name for param in main.commands["preprocess"].params for name in param.opts}
    assert known >= THEIRS


def test_the_readme_says_what_becomes_of_every_option_of_mindspeed():
    table = README.read_text().split("## Coming from MindSpeed-LLM")[1].split("\n## ")[0]
    named = set()
    for line in table.splitlines():
        if line.startswith("| `"):
            named |= set(re.findall(r"--[a-z-]+", line.split(" | ")[0]))
    assert THEIRS - named == {"--obf-seed-content"}


@pytest.mark.parametrize("option", ["--key", "--json-keys"])
def test_each_key_is_a_dataset_of_its_own(two_keys, tokenizer, tmp_path, option):
    """As argparse has it: values up to the next option."""
    result = run(
        *("--input", two_keys, "--tokenizer", tokenizer),
        *(option, "title", "body", "--output", tmp_path / "both", "--workers", 1),
    )
    assert result.exit_code == 0, result.output
    for key in ("title", "body"):
        alone = run(
            *(two_keys, "--tokenizer", tokenizer, "--key", key, "--workers", 1),
            *("--output", tmp_path / "one"),
        )
        assert alone.exit_code == 0, alone.output
        both, one = (
            open_token_dataset(tmp_path / f"{name}_{key}_document") for name in ("both", "one")
        )
        assert both.tokens.tolist() == one.tokens.tolist()
        assert len(both) == 5


def test_options_without_effect_are_told_one_by_one(two_keys, tokenizer, tmp_path):
    idle = {
        "--streaming": (),
        "--overwrite-cache": (),
        **dict.fromkeys(("--n-subs", "--log-interval", "--seed"), (3,)),
        **dict.fromkeys(("--make-vocab-size-divisible-by", "--pad-vocab-size-to"), (128,)),
        "--cache-dir": ("~/tmp",),
    }
    words = [word for name, values in idle.items() for word in (name, *values)]
    result = run(
        *(two_keys, "--tokenizer", tokenizer, "--output", tmp_path / "d", "--key", "title"),
        *("--dataset-impl", "mmap", "--tokenizer-type", "PretrainedFromHF", "--workers", 1),
        *("--pad-to-multiple-of", 1, *words),
    )
    assert result.exit_code == 0, result.output
    assert set(re.findall(r"^(--[a-z-]+) has no effect here: ", result.stderr, re.M)) == set(idle)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tokenizer-type", "GPT2BPETokenizer"], "only PretrainedFromHF: a tokenizer is a"),
        (["--tokenizer-model", "m"], "--tokenizer-model m is not supported"),
        (["--vocab-file", "v"], "transformers converts others"),
        (["--dataset-impl", "lazy"], "--dataset-impl lazy is not supported, only mmap"),
        (["--pad-to-multiple-of", "8"], "only 1: batches are padded in training"),
        (["--mix-strategy", "interleave_over"], "llm-data blend"),
        (["--merge-group-keys", "a", "b"], "llm-data merge"),
        (["--data-obfuscation"], "no obfuscation"),
        (["--neat-pack"], "--neat-pack needs --pack"),
        (["--pack"], "--pack has no meaning with --task pretrain, only with --task sft"),
        (["--template", "chatml"], "--template has no meaning with --task pretrain, only with"),
        (["--task", "sft"], "--task sft needs --template"),
        (["--task", "sft", "--template", "chatml", "--pack"], "--pack needs --seq-length"),
        (
            ["--task", "pairwise", "--template", "chatml", "--pack", "--seq-length", "8"],
            "--pack has no meaning with --task pairwise",
        ),
        (["--task", "sft", "--template", "chatml", "--append-eod"], "only with --task pretrain"),
        (
            ["--task", "sft", "--template", "chatml", "--mask-history", "--train-on-prompt"],
            "contradict each other",
        ),
        (["--task", "sft", "--template", "chatml", "--format", "text"], "has no roles"),
        (["--task", "sft", "--template", "chatml", "--too-long", "truncate"], "needs --seq-length"),
        (["--thinking", "on", "--enable-thinking", "false"], "contradict each other"),
        (["--map-keys", "{"], "--map-keys {: not JSON"),
        (["--map-keys", "nofile.json"], "neither a JSON object nor a file"),
        (["--key", "a", "a"], "want every key once"),
        (["--keep-newlines"], "--keep-newlines needs --split-sentences"),
        (["--seq-length", "0", "--task", "prm"], "--seq-length 0, want ≥ 1"),
    ],
)
def test_what_cannot_be_followed_is_a_usage_error_before_anything_is_read(words, says):
    result = run("--input", "nowhere", "--tokenizer", "nowhere", "--output", "nowhere/d", *words)
    assert result.exit_code == 2, result.output
    assert says in " ".join(result.output.split())


def test_a_value_may_be_a_dash_and_json_may_stand_in_a_file(tmp_path):
    keys = tmp_path / "keys.json"
    keys.write_text('{"prompt": "question"}')
    found = {}
    command = main.commands["preprocess"]
    words = ["x", "--tokenizer", "t", "--output", "o", "--task", "prm", "--map-keys", f"@{keys}"]
    context = command.make_context("preprocess", [*words, "--reward-tokens", "+", "-", "--pack"])
    found = configs_of({**context.params, "pack": False})
    assert [config.reward_tokens for config in found] == [("+", "-")]
    assert found[0].map_keys == {"prompt": "question"}
    assert context.params["pack"] is True


def test_every_option_stands_under_a_heading():
    options = main.commands["preprocess"].params[1:]
    assert all(isinstance(option, SectionOption) for option in options)
