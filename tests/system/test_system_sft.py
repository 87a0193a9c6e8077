"""The fine-tuning recipes of examples/sft, on tiny models, and what these models say then."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from chat_tokenizers import byte_level
from cli_surface import ROOT

RECIPES = sorted(path.stem for path in (ROOT / "examples" / "sft").glob("*.yaml"))
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "TEMPLATE": "chatml",
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a town",
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
        },
    }
]
# Of 32 conversations, those that are asked back.
ASKED = (0, 7, 19, 31)
WORDS = ["hello", "world", "quick", "brown", "fox", "jumps", "the", "good"]


def question(number):
    return f"question {number} {WORDS[number % 8]} {WORDS[number // 8]}"


def answer(number):
    return " ".join(WORDS[(number * step + step) % 8] for step in range(1, 6)) + f" {number}"


def conversations(count=32, said=answer):
    return [
        {
            "messages": [
                {"role": "user", "content": question(number)},
                {"role": "assistant", "content": said(number)},
            ]
        }
        for number in range(count)
    ]


def conversations_with_tools(count=32):
    """A question, a call, its result, an answer."""
    found = []
    for number in range(count):
        call = {"name": "weather", "arguments": json.dumps({"town": WORDS[number % 8]})}
        result, said = WORDS[number // 8], answer(number)
        messages = [
            {"role": "user", "content": question(number)},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": f"call{number}", "type": "function", "function": call}],
            },
            {"role": "tool", "content": result, "tool_call_id": f"call{number}"},
            {"role": "assistant", "content": said},
        ]
        found.append({"messages": messages, "tools": TOOLS})
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny Qwen3 with a byte-level tokenizer."""
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("model")
    core = byte_level()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>").save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=core.get_vocab_size(),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        eos_token_id=core.token_to_id("<|im_end|>"),
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def start(recipe, model, chats, work, *words, template="chatml"):
    """Run a recipe as its user would; its keys, smaller."""
    small = [
        *("train.precision=fp32", "train.seq_length=512", "train.global_batch_size=32"),
        *("train.micro_batch_size=8", "parallel.tp=1", "parallel.pp=1", "device=cpu"),
        *("optimizer.warmup_steps=10", "save.every=null", "save.keep=null"),
    ]
    path = work / "chats.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    command = [ROOT / "examples" / "sft.sh", recipe, model, path, work, *small, *words]
    done = subprocess.run(
        list(map(str, command)),
        env={**ENVIRONMENT, "TEMPLATE": template},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def losses(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


def asked(folder, number, *words, template="chatml"):
    """What `llm-infer chat` answers."""
    command = ["llm-infer", "chat", folder, "--template", template, "--max-new-tokens", "40"]
    done = subprocess.run(
        list(map(str, [*command, *words])),
        input=question(number) + "\n",
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_recipes_print_their_commands():
    done = subprocess.run(
        [ROOT / "examples" / "sft.sh", "--print", "packed", "m", "c.jsonl", "w"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    first = done.stdout.splitlines()[0]
    assert "--pack --seq-length 65536" in first
    assert RECIPES == ["full", "lora", "packed", "qlora", "tools"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_configs_that_check_passes_for_many_devices(recipe):
    from llm_train.arch import parse as parse_arch
    from llm_train.check import problems
    from llm_train.config_parse import parse
    from llm_train.edge.start import fewest_ranks

    document = yaml.safe_load((ROOT / "examples" / "sft" / f"{recipe}.yaml").read_text())
    config = parse(document, [], recipe)
    golden = ROOT / "tests" / "contracts" / "arch" / "golden" / "qwen3_tiny.json"
    arch = json.loads(golden.read_text())
    # A model as wide and deep as those layouts are for.
    arch["attention"] |= {"heads": 64, "query_groups": 8}
    arch["layers"][0]["count"] = 80
    arch["max_position_embeddings"] = 1 << 17
    assert problems(config, parse_arch(arch, where=recipe), 8 * fewest_ranks(config)) == []


# Last run 2026-11-27, on a busy machine: half a minute a recipe and more.
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_learns(recipe, model, tmp_path):
    chats = conversations_with_tools() if recipe == "tools" else conversations()
    words = ["train.max_steps=30", "optimizer.lr=3e-3"]
    if recipe == "packed":
        words += ["parallel.cp=1", "train.global_batch_size=4", "train.micro_batch_size=1"]
    if recipe == "tools":
        words.append("train.seq_length=1024")
    template = "qwen3" if recipe == "tools" else "chatml"
    start(recipe, model, chats, tmp_path / "work", *words, template=template)
    found = losses(tmp_path / "work" / recipe)
    assert len(found) == 30
    # Adapters of a random model have less to turn.
    assert found[-1] < (0.8 if "lora" in recipe else 0.6) * found[0]


# Last run 2026-11-27, on a busy machine: two to four minutes each.
@pytest.fixture(scope="module")
def taught(model, tmp_path_factory):
    """The model behind the full recipe: it says the answers of `conversations`."""
    work = tmp_path_factory.mktemp("taught")
    start("full", model, conversations(), work, "train.max_steps=100", "optimizer.lr=3e-3")
    return next((work / "full").glob("hf_*"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_says_the_conversations_that_it_learned(taught):
    for number in ASKED:
        assert answer(number) in asked(taught, number)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_says_the_conversations_of_packed_rows(model, tmp_path):
    words = ["train.max_steps=250", "optimizer.lr=3e-3", "parallel.cp=1"]
    words += ["train.global_batch_size=4", "train.micro_batch_size=1"]
    start("packed", model, conversations(), tmp_path / "work", *words)
    folder = next((tmp_path / "work" / "packed").glob("hf_*"))
    for number in ASKED:
        assert answer(number) in asked(folder, number)


# Last run 2026-11-27: seven to nine minutes beside other work.
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_model_calls_the_tool_as_it_learned(model, tmp_path):
    words = ["train.max_steps=250", "optimizer.lr=3e-3", "train.seq_length=1024"]
    chats = conversations_with_tools()
    start("tools", model, chats, tmp_path / "work", *words, template="qwen3")
    folder = next((tmp_path / "work" / "tools").glob("hf_*"))
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(TOOLS))
    told = ("--tools", path, "--chat-template-kwargs", '{"enable_thinking": false}')
    told += ("--max-new-tokens", "120")
    for number in ASKED:
        (call,) = chats[number]["messages"][1]["tool_calls"]
        found = asked(folder, number, *told, template="qwen3")
        wanted = {**call["function"], "arguments": json.loads(call["function"]["arguments"])}
        name, _, arguments = found.partition("→ ")[2].partition(" ")
        assert {"name": name, "arguments": json.loads(arguments.splitlines()[0])} == wanted


def other_answer(number):
    """Not what the base says to that question."""
    return answer((number + 11) % 32)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("recipe", ["lora", "qlora"])
def test_adapters_say_other_answers_than_their_base(recipe, taught, tmp_path):
    """Merged, and as a PEFT folder beside the base."""
    words = ["train.max_steps=80", "optimizer.lr=1e-2", "lora.rank=32"]
    start(recipe, taught, conversations(said=other_answer), tmp_path / "work", *words)
    run = tmp_path / "work" / recipe
    adapter = next(run.glob("adapter_*"))
    for number in ASKED[:2]:
        assert other_answer(number) in asked(run / "merged", number)
    for number in ASKED[2:]:
        assert other_answer(number) in asked(taught, number, "--lora", adapter)
