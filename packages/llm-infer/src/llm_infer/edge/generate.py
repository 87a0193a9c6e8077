"""`llm-infer generate`: one prompt to the terminal, or a file of prompts to a file of answers."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from llm_infer.edge.answers import Answer
from llm_infer.edge.atomic import atomic_text
from llm_infer.edge.speaker import AnswerStream, Speaker
from llm_infer.errors import InferError
from llm_infer.prompts import Prompt, answer_line, parse_prompts
from llm_infer.sampling import Sampling


def to_terminal(speaker: Speaker, prompt: str, sampling: Sampling) -> None:
    """Stream the answer to stdout, then one line about it to stderr."""
    stream = speaker.complete(prompt, sampling)
    if sys.stdout.isatty():
        click.secho(prompt, dim=True, nl=False)
    show(stream)
    click.secho(summary(stream), dim=True, err=True)


def show(stream: AnswerStream) -> None:
    """Print pieces as they come, and a line end."""
    for piece in stream:
        click.echo(piece, nl=False)
        sys.stdout.flush()
    click.echo()


def to_json(speaker: Speaker, prompt: str, sampling: Sampling) -> None:
    """Print the whole answer as one JSON object."""
    stream = speaker.complete(prompt, sampling)
    answer = {"prompt": prompt, "text": "".join(stream), **_facts(stream)}
    timing = {"first_token_s": stream.first_token_s, "tokens_per_s": stream.tokens_per_s}
    click.echo(json.dumps(answer | timing, ensure_ascii=False))


def read_prompts(path: Path) -> list[Prompt]:
    """All prompts of a JSON-lines file; a bad line is an error before anything is computed."""
    try:
        content = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InferError(f"{path}:{line}: not UTF-8 text at byte {error.start}") from None
    prompts = list(parse_prompts(content, str(path)))
    if not prompts:
        raise InferError(f"{path}: holds no prompts")
    return prompts


def to_file(speaker: Speaker, prompts: Sequence[Prompt], output: Path, sampling: Sampling) -> None:
    """Answer each prompt into a line of `output`; line N is drawn with `seed + N`."""
    output.parent.mkdir(parents=True, exist_ok=True)
    start_s = time.perf_counter()
    with atomic_text(output) as file:
        answers = speaker.complete_all(prompts, sampling)
        for prompt, answer in zip(prompts, answers, strict=True):
            file.write(answer_line(prompt, {"text": answer.text, **_facts(answer)}))
    num_tokens = sum(answer.num_tokens for answer in answers)
    rate = num_tokens / (time.perf_counter() - start_s)
    line = f"{len(prompts)} prompts · {num_tokens} tokens · {rate:.1f} tokens/s → {output}"
    click.secho(line, dim=True, err=True)


def summary(stream: AnswerStream) -> str:
    """One line: how many tokens, how fast, why it ended."""
    rate = "" if stream.tokens_per_s is None else f" · {stream.tokens_per_s:.1f} tokens/s"
    first = "" if stream.first_token_s is None else f" · first after {stream.first_token_s:.2f} s"
    prompt = "?" if stream.num_prompt_tokens is None else stream.num_prompt_tokens
    counts = f"{prompt} + {stream.num_tokens} tokens"
    return f"{counts}{rate}{first} · ended by {stream.finish_reason}"


def _facts(answer: AnswerStream | Answer) -> dict[str, object]:
    return {
        "finish_reason": answer.finish_reason,
        "num_prompt_tokens": answer.num_prompt_tokens,
        "num_tokens": answer.num_tokens,
    }
