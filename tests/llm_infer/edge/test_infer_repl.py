import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import echo_server
from echo_server import CharTokenizer, EchoEngine
from llm_infer.chat import Conversation
from llm_infer.cli import main
from llm_infer.edge import repl
from llm_infer.edge.local import LocalSpeaker
from llm_infer.edge.model_folder import Loaded
from llm_infer.sampling import Sampling
from tiny_lm import edit_json

TEMPLATE = (
    "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


def _chat(model, stdin, *arguments):
    options = ("--device", "cpu", "--max-new-tokens", "4")
    command = ["chat", str(model), *options, *map(str, arguments)]
    return CliRunner().invoke(main, command, input=stdin)


@pytest.fixture
def template(tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text(TEMPLATE)
    return path


@pytest.fixture
def asked(monkeypatch):
    """The text of every prompt the engine is given."""
    from llm_infer.edge.local import LocalSpeaker

    prompts = []
    begin = LocalSpeaker._start

    def recording(speaker, tokens, *rest):
        prompts.append(speaker._loaded.tokenizer.decode(tokens))
        return begin(speaker, tokens, *rest)

    monkeypatch.setattr(LocalSpeaker, "_start", recording)
    return prompts


def test_answers_may_be_those_of_a_beam_search(models, template):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models["qwen3"])
    ids = tokenizer("<u>def read(\n<a>", return_tensors="pt")["input_ids"]
    theirs = AutoModelForCausalLM.from_pretrained(models["qwen3"]).generate(
        ids, do_sample=False, num_beams=3, max_new_tokens=4, pad_token_id=0
    )
    text = tokenizer.decode(theirs[0, ids.shape[1] :], skip_special_tokens=True)
    result = _chat(models["qwen3"], "def read(\n", "--template", template, "--num-beams", 3)
    assert result.exit_code == 0, result.output
    assert result.stdout == text + "\n"


def test_each_question_brings_what_was_said_before(models, template, asked):
    result = _chat(models["qwen3"], "a\nb\n", "--template", template, "--system", "s")
    assert result.exit_code == 0, result.output
    first = result.stdout.split("\n")[0]
    assert asked[0] == "<s>s\n<u>a\n<a>"
    assert asked[1].startswith(f"<s>s\n<u>a\n<a>{first}")
    assert asked[1].endswith("<u>b\n<a>")


def test_history_turns_bounds_what_is_shown(models, template, asked):
    _chat(models["qwen3"], "a\nb\n", "--template", template, "--history-turns", 0)
    assert asked == ["<u>a\n<a>", "<u>b\n<a>"]


def test_commands_change_the_conversation(models, template, asked):
    lines = "a\n/clear\n/system t\nb\n/sytem x\n/quit\nnever\n"
    result = _chat(models["qwen3"], lines, "--template", template)
    assert result.exit_code == 0
    assert asked == ["<u>a\n<a>", "<s>t\n<u>b\n<a>"]
    assert "no command /sytem: did you mean /system?" in result.stderr


def test_the_tokenizers_own_template_is_used(models, tmp_path, asked):
    folder = shutil.copytree(models["llama"], tmp_path / "m")
    edit_json(folder / "tokenizer_config.json", chat_template=TEMPLATE)
    assert _chat(folder, "hi\n").exit_code == 0
    assert asked == ["<u>hi\n<a>"]


def test_the_template_is_told_more_names(models, template, asked):
    template.write_text(TEMPLATE + "{{ mood }}")
    given = ("--template", template, "--chat-template-kwargs", '{"mood": "calm"}')
    assert _chat(models["qwen3"], "hi\n", *given).exit_code == 0
    assert asked == ["<u>hi\n<a>calm"]


def test_the_template_is_told_of_tools(models, template, asked, tmp_path):
    template.write_text(TEMPLATE + "{% for t in tools %}{{ t.function.name }}{% endfor %}")
    path = tmp_path / "tools.json"
    path.write_text('[{"type": "function", "function": {"name": "add"}}]')
    given = ("--template", template, "--tools", path)
    assert _chat(models["qwen3"], "hi\n", *given).exit_code == 0
    assert asked == ["<u>hi\n<a>add"]
    path.write_text('{"name": "add"}')
    refused = _chat(models["qwen3"], "hi\n", *given)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "tools.json: want a JSON list of tools" in refused.stderr
    path.write_text('[{"type": "function"}]')
    wanted = "tools.json: tools.0.function: want an object with a name"
    assert wanted in _chat(models["qwen3"], "hi\n", *given).stderr
    path.unlink()
    assert "tools.json: no such file; want a JSON" in _chat(models["qwen3"], "", *given).stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("[]", "want a JSON object"),
        ("{", "Expecting property name"),
        ('{"messages": 1}', "'messages' comes from the conversation"),
        ('{"tokenize": true}', "'tokenize' is no name that templates can be told"),
    ],
)
def test_names_that_templates_cannot_be_told_are_refused(models, given, said):
    result = _chat(models["qwen3"], "hi\n", "--chat-template-kwargs", given)
    assert result.exit_code == 2
    assert said in result.stderr


def test_without_a_template_the_option_is_named(models):
    result = _chat(models["llama"], "hi\n")
    assert result.exit_code == 1
    assert "no chat template; give one with --template NAME|FILE" in result.stderr


@pytest.mark.parametrize("broken", ["{% for %}", "{{ raise_exception('no') }}"])
def test_a_broken_template_fails_before_the_first_question(models, tmp_path, broken):
    (tmp_path / "t.jinja").write_text(broken)
    result = _chat(models["llama"], "hi\n", "--template", tmp_path / "t.jinja")
    assert result.exit_code == 1
    assert "Error: chat template: " in result.stderr


def test_a_question_too_long_is_told_and_the_chat_goes_on(models, template, asked):
    result = _chat(models["qwen3"], "x" * 100 + "\nb\n", "--template", template)
    assert result.exit_code == 0
    assert "leaves no room for an answer (try /clear" in result.stderr
    assert asked[-1] == "<u>b\n<a>"


def test_a_saved_conversation_goes_on_in_another_chat(models, template, asked, tmp_path):
    saved = tmp_path / "said.json"
    first = _chat(models["qwen3"], f"a\n/save {saved}\n", "--template", template, "--system", "s")
    assert "saved 1 turns" in first.stderr
    answer = json.loads(saved.read_text())["messages"][-1]["content"]
    second = _chat(models["qwen3"], f"/load {saved}\nb\n", "--template", template)
    assert second.exit_code == 0, second.output
    assert asked[-1].startswith("<s>s\n<u>a\n<a>" + answer)
    assert asked[-1].endswith("<u>b\n<a>")


def test_a_file_that_cannot_be_loaded_is_told_and_the_chat_goes_on(models, template, asked):
    result = _chat(models["qwen3"], "/load none.json\n/save\nb\n", "--template", template)
    assert result.exit_code == 0
    assert "Error: [Errno 2] No such file or directory: 'none.json'" in result.stderr
    assert "Error: /save: want the name of a file" in result.stderr
    assert asked == ["<u>b\n<a>"]


def test_templates_have_names_too(models, asked):
    assert _chat(models["qwen3"], "hi\n", "--template", "chatml").exit_code == 0
    # ChatML, https://github.com/openai/openai-python/blob/release-v0.28.0/chatml.md
    assert asked == ["<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"]
    result = _chat(models["qwen3"], "hi\n", "--template", "chatmll")
    assert result.exit_code == 1
    assert "no template of that name: did you mean chatml?" in result.stderr


def _echo_chat(lines, *, tools=None, template=None, **options):
    """What a chat prints whose model repeats the question."""
    loaded = Loaded(engine=EchoEngine(), tokenizer=CharTokenizer())
    options = {"hides_thoughts": False, "history": Path("unused")} | options
    command = click.Command(
        "chat",
        callback=lambda: repl.chat(
            LocalSpeaker(loaded, template=template, tools=tools),
            Conversation(system=None, max_turns=4),
            Sampling(max_new_tokens=len(lines[0])),
            repl.ChatOptions(**options),
        ),
    )
    return CliRunner().invoke(command, [], input="\n".join(lines), color=True).stdout


def test_thoughts_are_dimmed_or_hidden():
    question = "<think>hm</think>yes"
    dim, reset = "\x1b[2m", "\x1b[0m"
    assert re.sub(rf"{re.escape(reset)}{re.escape(dim)}", "", _echo_chat([question])) == (
        f"{dim}hm{reset}\n\nyes\n"
    )
    assert _echo_chat([question], hides_thoughts=True) == "yes\n"


def test_thoughts_in_channels_are_dimmed_and_their_calls_shown():
    tools = [{"type": "function", "function": {"name": "add"}}]
    bold, dim, reset = "\x1b[1m", "\x1b[2m", "\x1b[0m"
    thinks = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
    words = thinks + "<|channel|>final<|message|>yes"
    call = thinks + '<|channel|>commentary to=functions.add json<|message|>{"a": 1}'

    def shown(question, **options):
        said = _echo_chat([question], template="<|channel|>", **options)
        return re.sub(rf"{re.escape(reset)}{re.escape(dim)}", "", said)

    assert shown(words) == f"{dim}hm{reset}\n\nyes\n"
    assert shown(words, hides_thoughts=True) == "yes\n"
    assert shown(call, tools=tools) == f'{dim}hm{reset}\n\n{bold}→ add {{"a": 1}}{reset}\n'


def test_calls_of_tools_stand_on_lines_of_their_own():
    call = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    tools = [{"type": "function", "function": {"name": "add"}}]
    bold, reset = "\x1b[1m", "\x1b[0m"
    shown = f'{bold}→ add {{"a": 1}}{reset}\n'
    assert _echo_chat([call], tools=tools) == shown
    assert _echo_chat([f"So: {call} {call}"], tools=tools) == f"So:{bold}\n→ " + shown[6:] + shown
    assert _echo_chat([call]) == f"{call}\n"
    assert _echo_chat(["<tool_call>no"], tools=tools) == "<tool_call>no\n"


def test_a_terminal_edits_lines_and_keeps_their_history(tmp_path):
    history = tmp_path / "new" / "history"
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from echo_server import *\n"
        "from llm_infer.chat import Conversation\n"
        "from llm_infer.edge import repl\n"
        "from llm_infer.edge.local import LocalSpeaker\n"
        "from llm_infer.edge.model_folder import Loaded\n"
        "from llm_infer.sampling import Sampling\n"
        "loaded = Loaded(engine=EchoEngine(), tokenizer=CharTokenizer())\n"
        "repl.chat(LocalSpeaker(loaded, template=None),\n"
        "    Conversation(system=None, max_turns=4), Sampling(max_new_tokens=4),\n"
        "    repl.ChatOptions(hides_thoughts=False, history=Path(sys.argv[2])))\n"
    )
    support = str(Path(echo_server.__file__).parent)
    command = [sys.executable, "-c", script, support, str(history)]
    # Left arrow, then a letter: "bc" becomes "abc". Then the line before, from the history.
    first = _on_terminal(command, b"bc\x1b[D\x1b[Da\r", b"/quit\r")
    assert b"abca" in first
    assert history.read_text().splitlines() == ["abc", "/quit"]
    second = _on_terminal(command, b"\x1b[A\x1b[A\r", b"\x04")
    assert b"abca" in second


def _on_terminal(command, *typed):
    """All that a program says on a terminal where this is typed, each when it asks."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True)
    os.close(theirs)
    said, waiting = b"", list(typed)
    asked_until = 0
    try:
        while select.select([ours], [], [], 60)[0]:
            said += os.read(ours, 4096)
            if waiting and b"> " in said[asked_until:]:
                asked_until = len(said)
                os.write(ours, waiting.pop(0))
    except OSError:
        # Linux: the other side of the terminal is closed.
        pass
    finally:
        os.close(ours)
        process.kill()
        process.wait()
    assert not waiting, said
    return said


def test_a_line_that_is_not_text_is_told_and_the_chat_goes_on(models, template):
    result = _chat(models["qwen3"], b"a\xffb\n/system \xff\n/quit\n", "--template", template)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("Error: the line: character ") == 2
