import shutil

import pytest
from click.testing import CliRunner

from llm_infer.cli import main
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
    from llm_infer.edge import repl
    from llm_infer.edge.generate import start

    prompts = []

    def recording(loaded, tokens, sampling):
        prompts.append(loaded.tokenizer.decode(tokens))
        return start(loaded, tokens, sampling)

    monkeypatch.setattr(repl, "start", recording)
    return prompts


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


def test_without_a_template_the_option_is_named(models):
    result = _chat(models["llama"], "hi\n")
    assert result.exit_code == 1
    assert "no chat template; give one with --template FILE" in result.stderr


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
