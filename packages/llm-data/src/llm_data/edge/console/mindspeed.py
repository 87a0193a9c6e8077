"""MindSpeed-LLM's options that have no twin here: each is told why, none is ignored silently."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import click

from llm_data.edge.console.sections import SectionOption

_SECTION = "MindSpeed-LLM"


class _Verdict(Enum):
    NO_EFFECT = "has no effect here"
    REFUSED = "is not supported"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Old:
    """An option of theirs; `harmless` is the value that asks for what we do anyway."""

    name: str
    verdict: _Verdict
    why: str
    is_flag: bool = False
    several: bool = False
    harmless: str | None = None


def _none(name: str, why: str, *, is_flag: bool = False) -> _Old:
    return _Old(name=name, verdict=_Verdict.NO_EFFECT, why=why, is_flag=is_flag)


def _refused(
    name: str,
    why: str,
    *,
    is_flag: bool = False,
    several: bool = False,
    harmless: str | None = None,
) -> _Old:
    return _Old(
        name=name,
        verdict=_Verdict.REFUSED,
        why=why,
        is_flag=is_flag,
        several=several,
        harmless=harmless,
    )


_CONVERT = (
    "a tokenizer is a folder with tokenizer.json; transformers converts others: "
    "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
)
_PADDING = "the model's vocabulary is padded when a model is made, not when text is tokenized"
_MIXING = "llm-data blend mixes datasets that are made"

_TABLE = (
    _none("--streaming", "every input is streamed", is_flag=True),
    _none("--n-subs", "one run writes one dataset with any --workers"),
    _none("--log-interval", "progress is shown as time passes"),
    _none("--seed", "nothing here is random"),
    _none("--cache-dir", "nothing is cached; HF_HOME moves the cache of Hugging Face datasets"),
    _none(
        "--overwrite-cache",
        "there is no cache; --overwrite replaces a finished dataset",
        is_flag=True,
    ),
    _none("--make-vocab-size-divisible-by", _PADDING),
    _none("--pad-vocab-size-to", _PADDING),
    _refused("--dataset-impl", "only mmap is written", harmless="mmap"),
    _refused("--tokenizer-type", _CONVERT, harmless="PretrainedFromHF"),
    _refused("--tokenizer-model", _CONVERT),
    _refused("--vocab-file", _CONVERT),
    _refused("--merge-file", _CONVERT),
    _refused("--tokenizer-not-use-fast", _CONVERT, is_flag=True),
    _refused("--pad-to-multiple-of", "batches are padded in training", harmless="1"),
    _refused("--script-data-dir", "datasets no longer runs scripts; convert to parquet or jsonl"),
    _refused("--max-samples", "llm-data split takes a part of a dataset that is made"),
    _refused("--mix-strategy", _MIXING, harmless="concat"),
    _refused("--interleave-probs", _MIXING),
    _refused("--merge-group-keys", "llm-data merge has it", several=True),
    _refused("--reasoning-effort", "a template file of your own can say it"),
    _refused("--drop-thinking", "--thinking off strips thoughts", is_flag=True),
    _refused("--data-obfuscation", "no obfuscation is offered", is_flag=True),
    _refused("--obf-seed-content", "no obfuscation is offered"),
)


def old_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options to a command, hidden from its help page."""
    for old in reversed(_TABLE):
        command = click.option(
            old.name,
            cls=SectionOption,
            section=_SECTION,
            several=old.several,
            multiple=old.several,
            is_flag=old.is_flag,
            hidden=True,
            expose_value=False,
            callback=_answer(old),
        )(command)
    return command


def _answer(old: _Old) -> Callable[[click.Context, click.Parameter, object], None]:
    def answer(_context: click.Context, _parameter: click.Parameter, value: object) -> None:
        if value in (None, False, ()) or value == old.harmless:
            return
        if old.verdict is _Verdict.REFUSED:
            wanted = f", only {old.harmless}" if old.harmless else ""
            shown = old.name if old.is_flag else f"{old.name} {value}"
            raise click.UsageError(f"{shown} {old.verdict.value}{wanted}: {old.why}")
        click.echo(f"{old.name} {old.verdict.value}: {old.why}", err=True)

    return answer
