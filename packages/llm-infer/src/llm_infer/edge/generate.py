"""`llm-infer generate`: one prompt to the terminal, or a file of prompts to a file of answers."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from llm_infer.edge.answers import Answer
from llm_infer.edge.atomic import atomic_text
from llm_infer.edge.notes import note
from llm_infer.edge.speaker import AnswerStream, Speaker
from llm_infer.errors import InferError
from llm_infer.openai_api.answers import token_logprobs
from llm_infer.prompts import ANSWER_KEYS, Prompt, answer_line, parse_prompts
from llm_infer.sampling import Sampling


def to_terminal(speaker: Speaker, prompt: str, sampling: Sampling) -> None:
    """Stream the answer to stdout, then one line about it to stderr.

    Several texts of a search stand one after the other, each with its line.
    """
    if sampling.beams is not None and sampling.beams.num_texts > 1:
        for answer in _texts(_whole(speaker, prompt, sampling)):
            click.echo(answer.text)
            score = "" if answer.score is None else f" · score {answer.score:.4f}"
            note(summary(answer) + score, is_dim=True)
        return
    stream = speaker.complete(prompt, sampling)
    if sys.stdout.isatty():
        click.secho(prompt, dim=True, nl=False)
    show(stream)
    note(summary(stream), is_dim=True)


def show(stream: AnswerStream) -> None:
    """Print pieces as they come, and a line end."""
    for piece in stream:
        click.echo(piece, nl=False)
        sys.stdout.flush()
    click.echo()


def to_json(speaker: Speaker, prompt: str, sampling: Sampling) -> None:
    """Print the whole answer as one JSON object."""
    answer = _whole(speaker, prompt, sampling)
    timing = {"first_token_s": answer.first_token_s, "tokens_per_s": answer.tokens_per_s}
    fields = {"prompt": prompt, **_fields(answer, sampling), **timing}
    click.echo(json.dumps(fields, ensure_ascii=False))


def read_prompts(path: Path, sampling: Sampling) -> list[Prompt]:
    """All prompts of a JSON-lines file; a bad line is an error before anything is computed."""
    try:
        content = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InferError(f"{path}:{line}: not UTF-8 text at byte {error.start}") from None
    keys = [*ANSWER_KEYS]
    if sampling.beams is not None:
        keys += ("score", "texts")
    if sampling.logprobs is not None:
        keys.append("logprobs")
    prompts = list(parse_prompts(content, str(path), answer_keys=keys))
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
            file.write(answer_line(prompt, _fields(answer, sampling)))
    num_tokens = sum(text.num_tokens for answer in answers for text in _texts(answer))
    rate = num_tokens / (time.perf_counter() - start_s)
    line = f"{len(prompts)} prompts · {num_tokens} tokens · {rate:.1f} tokens/s → {output}"
    note(line, is_dim=True)


def summary(stream: AnswerStream | Answer) -> str:
    """One line: how many tokens, how fast, why it ended."""
    rate = "" if stream.tokens_per_s is None else f" · {stream.tokens_per_s:.1f} tokens/s"
    first = "" if stream.first_token_s is None else f" · first after {stream.first_token_s:.2f} s"
    prompt = "?" if stream.num_prompt_tokens is None else stream.num_prompt_tokens
    counts = f"{prompt} + {stream.num_tokens} tokens"
    return f"{counts}{rate}{first} · ended by {stream.finish_reason}"


def _whole(speaker: Speaker, prompt: str, sampling: Sampling) -> Answer:
    (answer,) = speaker.complete_all([Prompt(prompt, {}, "--prompt")], sampling)
    return answer


def _texts(answer: Answer) -> Sequence[Answer]:
    return (answer, *answer.others)


def _fields(answer: Answer, sampling: Sampling) -> dict[str, object]:
    """An answer as JSON: that of a search with its score, and all of its texts where several."""
    fields = _facts(answer, sampling)
    if answer.others:
        fields["texts"] = [_facts(one, sampling) for one in _texts(answer)]
    return fields | {"num_prompt_tokens": answer.num_prompt_tokens}


def _facts(answer: Answer, sampling: Sampling) -> dict[str, object]:
    facts: dict[str, object] = {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "num_tokens": answer.num_tokens,
    }
    if answer.score is not None:
        facts["score"] = answer.score
    if sampling.logprobs is not None:
        facts["logprobs"] = token_logprobs(answer.logprobs)
    return facts
