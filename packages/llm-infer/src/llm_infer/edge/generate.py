"""`llm-infer generate`: one prompt to the terminal, or a file of prompts to a file of answers."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from llm_infer.edge.answers import answers_of
from llm_infer.edge.atomic import atomic_text
from llm_infer.edge.model_folder import Loaded
from llm_infer.errors import InferError
from llm_infer.prompts import Prompt, answer_line, parse_prompts
from llm_infer.sampling import Sampling
from llm_infer.stream import TextStream


def start(loaded: Loaded, prompt: Sequence[int], sampling: Sampling) -> TextStream:
    """Begin to answer; raises when the prompt leaves no room."""
    check_room(loaded, prompt)
    return TextStream(
        loaded.engine.generate(prompt, sampling),
        loaded.tokenizer.decode,
        sampling,
        room=loaded.engine.context_length - len(prompt),
        clock=time.perf_counter,
    )


def check_room(loaded: Loaded, prompt: Sequence[int]) -> None:
    """Raise unless there is a prompt, and room behind it in the context."""
    context = loaded.engine.context_length
    if not prompt:
        raise InferError("the prompt is empty and the tokenizer adds nothing to it")
    if len(prompt) >= context:
        raise InferError(
            f"the prompt has {len(prompt)} tokens; the model's context of {context} "
            "leaves no room for an answer"
        )


def to_terminal(loaded: Loaded, prompt: str, sampling: Sampling) -> None:
    """Stream the answer to stdout, then one line about it to stderr."""
    tokens = loaded.tokenizer.encode(prompt)
    stream = start(loaded, tokens, sampling)
    if sys.stdout.isatty():
        click.secho(prompt, dim=True, nl=False)
    show(stream)
    click.secho(summary(stream, len(tokens)), dim=True, err=True)


def show(stream: TextStream) -> None:
    """Print pieces as they come, and a line end."""
    for piece in stream:
        click.echo(piece, nl=False)
        sys.stdout.flush()
    click.echo()


def to_json(loaded: Loaded, prompt: str, sampling: Sampling) -> None:
    """Print the whole answer as one JSON object."""
    tokens = loaded.tokenizer.encode(prompt)
    stream = start(loaded, tokens, sampling)
    answer = {"prompt": prompt, **_answer(stream, len(tokens))}
    timing = {"first_token_s": stream.first_token_s, "tokens_per_s": stream.tokens_per_s}
    click.echo(json.dumps(answer | timing, ensure_ascii=False))


def read_prompts(path: Path) -> list[Prompt]:
    """All prompts of a JSON-lines file; a bad line is an error before anything is computed."""
    try:
        content = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InferError(f"{path}: not UTF-8 text at byte {error.start}") from None
    prompts = list(parse_prompts(content, str(path)))
    if not prompts:
        raise InferError(f"{path}: holds no prompts")
    return prompts


def to_file(loaded: Loaded, prompts: Sequence[Prompt], output: Path, sampling: Sampling) -> None:
    """Answer each prompt into a line of `output`; line N is drawn with `seed + N`."""
    output.parent.mkdir(parents=True, exist_ok=True)
    encoded = [_encoded(loaded, prompt) for prompt in prompts]
    start_s = time.perf_counter()
    with atomic_text(output) as file:
        answers = answers_of(loaded, encoded, sampling)
        for prompt, tokens, answer in zip(prompts, encoded, answers, strict=True):
            counts = {"num_prompt_tokens": len(tokens), "num_tokens": answer.num_tokens}
            said = {"text": answer.text, "finish_reason": answer.finish_reason}
            file.write(answer_line(prompt, {**said, **counts}))
    num_tokens = sum(answer.num_tokens for answer in answers)
    rate = num_tokens / (time.perf_counter() - start_s)
    line = f"{len(prompts)} prompts · {num_tokens} tokens · {rate:.1f} tokens/s → {output}"
    click.secho(line, dim=True, err=True)


def summary(stream: TextStream, num_prompt_tokens: int) -> str:
    """One line: how many tokens, how fast, why it ended."""
    rate = "" if stream.tokens_per_s is None else f" · {stream.tokens_per_s:.1f} tokens/s"
    first = "" if stream.first_token_s is None else f" · first after {stream.first_token_s:.2f} s"
    counts = f"{num_prompt_tokens} + {stream.num_tokens} tokens"
    return f"{counts}{rate}{first} · ended by {stream.finish_reason}"


def _answer(stream: TextStream, num_prompt_tokens: int) -> dict[str, object]:
    text = "".join(stream)
    return {
        "text": text,
        "finish_reason": stream.finish_reason,
        "num_prompt_tokens": num_prompt_tokens,
        "num_tokens": stream.num_tokens,
    }


def _encoded(loaded: Loaded, prompt: Prompt) -> list[int]:
    """A prompt's tokens; one that leaves no room is found before anything is computed."""
    tokens = loaded.tokenizer.encode(prompt.text)
    try:
        check_room(loaded, tokens)
    except InferError as error:
        raise InferError(f"{prompt.where}: {error}") from error
    return tokens
