"""`llm-infer chat`: questions from the terminal or a pipe, streamed answers."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from llm_infer.chat import HELP, Conversation, split_command, unknown_command
from llm_infer.edge.atomic import atomic_text
from llm_infer.edge.generate import summary
from llm_infer.edge.line_editor import lines
from llm_infer.edge.speaker import Speaker
from llm_infer.engine import Message
from llm_infer.errors import InferError
from llm_infer.sampling import Sampling
from llm_infer.thinking import Thought, ThoughtReading, ThoughtSplitter
from llm_infer.tools.calls import Call
from llm_infer.tools.splitter import CallReading
from llm_infer.unicode_text import require_text


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How a chat is shown."""

    hides_thoughts: bool
    history: Path
    """Where the lines that were typed are kept."""


@dataclass(slots=True)
class _Chat:
    """A chat in progress."""

    speaker: Speaker
    conversation: Conversation
    sampling: Sampling
    options: ChatOptions
    num_answers: int = 0


def chat(
    speaker: Speaker, conversation: Conversation, sampling: Sampling, options: ChatOptions
) -> None:
    """Answer until the input ends or `/quit`; answer N is drawn with `seed + N`."""
    # A template that cannot be used should say so before the first question.
    speaker.require_chat(conversation.messages("."))
    state = _Chat(speaker, conversation, sampling, options)
    for line in lines(options.history):
        command = split_command(line)
        if command is not None and command[0] == "/quit":
            return
        try:
            require_text(line, where="the line")
            if command is None:
                _answer(state, line)
            else:
                state.conversation = _obey(state.conversation, *command)
        except BrokenPipeError:
            raise
        except (InferError, OSError) as error:
            click.echo(f"Error: {error}", err=True)


def _answer(state: _Chat, question: str) -> None:
    sampling = replace(state.sampling, seed=state.sampling.seed + state.num_answers)
    try:
        answer = _ask(state, state.conversation.messages(question), sampling)
    except InferError as error:
        raise InferError(f"{error} (try /clear or a smaller --history-turns)") from error
    state.conversation = state.conversation.answered(question, answer)
    state.num_answers += 1


def _ask(state: _Chat, messages: Sequence[Message], sampling: Sampling) -> str:
    """Show the answer as it comes, and return it without its thoughts, which are not told back."""
    reading = state.speaker.call_reading(messages)
    shown = _Shown(state.options, reading, state.speaker.thought_reading(messages))
    stream = state.speaker.converse(messages, sampling)
    try:
        for piece in stream.parts():
            shown.push(piece)
        shown.end()
    except KeyboardInterrupt:
        click.echo()
    else:
        click.secho(summary(stream), dim=True, err=True)
    return shown.answer


class _Shown:
    """What was printed of an answer: thoughts dimmed or not at all, a blank line between; calls of
    tools each on a line of its own.
    """

    def __init__(
        self, options: ChatOptions, calls: CallReading | None, thoughts: ThoughtReading
    ) -> None:
        self.answer = ""
        """As the model wrote it, calls too, but for those in channels."""
        self._has_channels = calls is not None and calls.form.has_channels
        self._thoughts = ThoughtSplitter(thoughts)
        self._calls = None
        if calls is not None:
            self._calls = calls.channels() if self._has_channels else calls.splitter()
        self._is_within_line, self._has_said = True, False
        self._hides_thoughts = options.hides_thoughts
        self._has_thought = self._has_answered = False

    def push(self, piece: str | Thought) -> None:
        """Print what is certain of it now."""
        if isinstance(piece, Thought):
            self._think(piece.text)
        elif self._has_channels and self._calls is not None:
            self._add_channels(self._calls.push(piece))
        else:
            self._add(self._thoughts.push(piece))
        sys.stdout.flush()

    def end(self) -> None:
        """Print what was held back, and end the line."""
        if not self._has_channels:
            self._add(self._thoughts.flush())
        if self._calls is not None:
            self._add_channels(self._calls.flush())
        if self._is_within_line:
            click.echo()

    def _add(self, parts: Iterable[str | Thought]) -> None:
        for part in parts:
            if isinstance(part, Thought):
                self._think(part.text)
            else:
                self._begin_answer()
                self.answer += part
                self._add_channels([part] if self._calls is None else self._calls.push(part))

    def _add_channels(self, parts: Iterable[str | Thought | Call]) -> None:
        for part in parts:
            if isinstance(part, Thought):
                self._think(part.text)
                continue
            if self._has_channels:
                self._begin_answer()
                self.answer += part if isinstance(part, str) else ""
            self._say(part)

    def _think(self, text: str) -> None:
        if not self._hides_thoughts:
            click.secho(text, dim=True, nl=False)
            self._has_thought = True

    def _begin_answer(self) -> None:
        if self._has_thought and not self._has_answered:
            click.echo("\n")
        self._has_answered = True

    def _say(self, part: str | Call) -> None:
        if isinstance(part, str):
            click.echo(part, nl=False)
            self._is_within_line = True
        else:
            start = "\n" if self._is_within_line and self._has_said else ""
            click.secho(f"{start}→ {part.name} {part.arguments}", bold=True)
            self._is_within_line = False
        self._has_said = True


def _obey(conversation: Conversation, name: str, argument: str) -> Conversation:
    if name in ("/save", "/load") and not argument:
        raise InferError(f"{name}: want the name of a file")
    match name:
        case "/clear":
            return conversation.cleared()
        case "/system":
            return replace(conversation, system=argument or None)
        case "/save":
            with atomic_text(Path(argument)) as file:
                file.write(conversation.dumped())
            click.echo(f"saved {len(conversation.turns)} turns to {argument}", err=True)
        case "/load":
            found = conversation.loaded(_read(Path(argument)), where=argument)
            click.echo(f"loaded {len(found.turns)} turns from {argument}", err=True)
            return found
        case "/help":
            click.echo(HELP, err=True)
        case _:
            click.echo(unknown_command(name), err=True)
    return conversation


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InferError(f"{path}: not UTF-8 text at byte {error.start}") from None
