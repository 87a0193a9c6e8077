"""`llm-infer chat`: questions from the terminal or a pipe, streamed answers."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from llm_infer.chat import HELP, Conversation, split_command, unknown_command
from llm_infer.edge.generate import show, start, summary
from llm_infer.edge.model_folder import Loaded
from llm_infer.errors import InferError
from llm_infer.sampling import Sampling


def read_template(path: Path) -> str:
    """A Jinja chat template from a file."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InferError(f"{path}: not UTF-8 text at byte {error.start}") from None


def chat(
    loaded: Loaded, conversation: Conversation, sampling: Sampling, *, template: str | None
) -> None:
    """Answer until the input ends or `/quit`; answer N is drawn with `seed + N`."""
    if template is None and not loaded.tokenizer.has_chat_template:
        raise InferError("the tokenizer has no chat template; give one with --template FILE")
    # A template that cannot be used should say so before the first question.
    loaded.tokenizer.encode_chat(conversation.messages("."), template)
    num_answers = 0
    for line in _lines():
        command = split_command(line)
        if command is not None:
            if command[0] == "/quit":
                return
            conversation = _obey(conversation, *command)
            continue
        try:
            drawn = replace(sampling, seed=sampling.seed + num_answers)
            answer = _ask(loaded, conversation, line, drawn, template)
        except InferError as error:
            click.echo(f"Error: {error} (try /clear or a smaller --history-turns)", err=True)
            continue
        conversation = conversation.answered(line, answer)
        num_answers += 1


def _ask(
    loaded: Loaded,
    conversation: Conversation,
    question: str,
    sampling: Sampling,
    template: str | None,
) -> str:
    tokens = loaded.tokenizer.encode_chat(conversation.messages(question), template)
    stream = start(loaded, tokens, sampling)
    try:
        show(stream)
    except KeyboardInterrupt:
        click.echo()
        return stream.text
    click.secho(summary(stream, len(tokens)), dim=True, err=True)
    return stream.text


def _obey(conversation: Conversation, name: str, argument: str) -> Conversation:
    if name == "/clear":
        return conversation.cleared()
    if name == "/system":
        return replace(conversation, system=argument or None)
    click.echo(HELP if name == "/help" else unknown_command(name), err=True)
    return conversation


def _lines() -> Iterator[str]:
    """Non-blank lines, edited with readline on a terminal, until the end of the input."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    import readline  # noqa: F401  gives input() line editing and history

    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        if line:
            yield line
