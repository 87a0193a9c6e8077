"""Options of `llm-eval run` that say how tasks are asked and which documents, read from texts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import click

_SAMPLES = '{"task": [0, 7], …}'


def amount(_: Any, param: Any, value: str | None) -> float | None:
    """A callback for a number of documents from 1 (an int), or a share of them below 1."""
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if 0 < number < 1:
        return number
    if number >= 1 and number.is_integer():
        return int(number)
    raise click.BadParameter(
        f"{value!r}: want a number from 1, or a share between 0 and 1", param=param
    )


def asking_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `generation`, `samples`, `system` and `is_multiturn`."""
    options = (
        click.option("--fewshot-as-multiturn/--no-fewshot-as-multiturn", "is_multiturn",
                     default=True, show_default=True,
                     help="With --apply-chat-template: each example a message and its answer."),
        click.option("--system-instruction", "system", help="What the model is told first."),
        click.option("--gen-kwargs", "generation", multiple=True, metavar="KEY=VALUE",
                     callback=_generation,
                     help="Options of generation, over the tasks' own; values are JSON or text."),
        click.option("--samples", metavar="JSON|FILE", callback=_samples,
                     help='Documents by number: {"task": [0, 7]}. Goes without --limit.'),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _generation(_: Any, param: Any, values: tuple[str, ...]) -> dict[str, object]:
    found: dict[str, object] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{value!r}: want KEY=VALUE, as max_gen_toks=64", param=param)
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found


def _samples(_: Any, param: Any, value: str | None) -> dict[str, list[int]]:
    """Sorted: the harness takes documents in their own order, and numbers them in the given one."""
    if value is None:
        return {}
    try:
        text = value if value.lstrip().startswith("{") else Path(value).read_text(encoding="utf-8")
        found: object = json.loads(text)
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{error}; want {_SAMPLES}, or its file", param=param) from None
    chosen: dict[str, list[int]] = {}
    for task, numbers in cast(
        "dict[str, object]", found if isinstance(found, dict) else {}
    ).items():
        listed = cast("list[object]", numbers) if isinstance(numbers, list) else []
        whole = {n for n in listed if isinstance(n, int) and not isinstance(n, bool) and n >= 0}
        if not whole or len(whole) != len(listed):
            raise click.BadParameter(
                f"{task}: {numbers!r}; want different numbers of documents from 0", param=param
            )
        chosen[task] = sorted(whole)
    if not chosen:
        raise click.BadParameter(f"found {text.strip()[:60]}; want {_SAMPLES}", param=param)
    return chosen
