"""The options of `llm-data preprocess`, and the configurations they ask for."""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import cast

import click

from llm_data.config import STEP_PLACEHOLDER, OnError, PreprocessConfig, Task
from llm_data.edge.console.mindspeed import old_options
from llm_data.edge.console.sections import section
from llm_data.edge.console.support import PATH
from llm_data.errors import UsageError

_data = section("Data")
_records = section("Records")
_text = section("Text (--task pretrain)")
_chat = section("Conversations (--task sft, pairwise, prompt)")
_other = section("Other tasks")
_how = section("How")

_OPTIONS = (
    click.argument("inputs", nargs=-1, metavar="INPUT..."),
    _data("--input", "more_inputs", multiple=True, several=True, help="The same as INPUT."),
    _data(
        "--tokenizer",
        "--tokenizer-name-or-path",
        "tokenizer",
        type=PATH,
        required=True,
        metavar="DIR|FILE",
        help="A folder with tokenizer.json, or the file.",
    ),
    _data(
        "--output",
        "--output-prefix",
        "output",
        type=PATH,
        required=True,
        metavar="PREFIX",
        help="Writes PREFIX_<key>_document.* or PREFIX_packed_<column>_document.*",
    ),
    _data(
        "--task",
        type=click.Choice([task.value for task in Task]),
        help="What the data is for.  [default: the handler's, else pretrain]",
    ),
    _data(
        "--pattern",
        "patterns",
        multiple=True,
        metavar="GLOB",
        help="Take only such files from folders; unknown suffixes are read as text. Repeatable.",
    ),
    _data("--split", metavar="NAME", help="Of a Hugging Face dataset.  [default: train]"),
    _data(
        "--datasets-params",
        "--hf-datasets-params",
        "datasets_params",
        metavar="JSON|FILE",
        help="Further arguments of datasets.load_dataset.",
    ),
    _data(
        "--dtype",
        type=click.Choice(["auto", "uint16", "int32"]),
        default="auto",
        show_default=True,
        help="auto: uint16 below 65500 ids, as Megatron has it.",
    ),
    _records(
        "--format",
        type=click.Choice(["auto", "text", "alpaca", "sharegpt", "openai"]),
        default="auto",
        show_default=True,
        help="What a record looks like. auto: text to pretrain, else told from the first record.",
    ),
    _records(
        "--handler-name",
        "handler",
        metavar="NAME",
        help="A MindSpeed-LLM handler, or one of your own: sets task and format.",
    ),
    _records(
        "--map-keys",
        metavar="JSON|@FILE",
        help='Columns that have other names, e.g. \'{"prompt": "question", "query": ""}\'.',
    ),
    _records(
        "--dataset-dir",
        type=PATH,
        metavar="DIR",
        help="Folder with LLaMA-Factory's dataset_info.json; INPUT then names entries of it.",
    ),
    _records(
        "--on-error",
        type=click.Choice([each.value for each in OnError]),
        default="stop",
        show_default=True,
        help="A record that cannot be read: stop, or set it aside and count it.",
    ),
    _text(
        "--key",
        "--json-keys",
        "keys",
        multiple=True,
        several=True,
        metavar="NAME...",
        help="The key or column of the text; each further one is a dataset of its own.  "
        "[default: text]",
    ),
    _text("--append-eod", is_flag=True, help="End every document with the eos token."),
    _text("--eos-token", metavar="TOKEN", help="That token, if the folder names none."),
    _text("--split-sentences", is_flag=True, help="A sequence a sentence; needs nltk."),
    _text("--keep-newlines", is_flag=True, help="Sentences keep the white space between them."),
    _text("--language", default="english", show_default=True, help="Of the sentences."),
    _text(
        "--tokenizer-backend",
        type=click.Choice(["auto", "hf", "gigatoken"]),
        default="auto",
        show_default=True,
        help="auto: gigatoken where it is installed and gives hf's ids.",
    ),
    _chat(
        "--template",
        "--prompt-type",
        "template",
        metavar="NAME|FILE|hf",
        help="A name that `llm-data templates` lists, a file, or the tokenizer's own.",
    ),
    _chat(
        "--prompt-type-path",
        type=PATH,
        metavar="FILE",
        help="A file of templates in MindSpeed-LLM's form; --prompt-type names one of them.",
    ),
    _chat(
        "--template-date",
        metavar="YYYY-MM-DD",
        help="What a template that asks for today gets; without it such a template is refused.",
    ),
    _chat(
        "--thinking",
        type=click.Choice(["on", "off", "keep"]),
        help="Thoughts: add an empty one and learn it, strip them, or keep them.  [default: keep]",
    ),
    _chat(
        "--enable-thinking",
        type=click.Choice(["true", "false", "none"]),
        help="The same as --thinking on, off, keep.",
    ),
    _chat("--mask-history", is_flag=True, help="sft: only the last answer is learned."),
    _chat("--train-on-prompt", is_flag=True, help="sft: everything is learned."),
    _chat("--seq-length", type=int, metavar="N", help="The longest sample; a packed row's length."),
    _chat(
        "--too-long",
        type=click.Choice(["drop", "truncate"]),
        default="drop",
        show_default=True,
        help="What to do with a sample beyond --seq-length.",
    ),
    _chat("--pack", is_flag=True, help="sft: several samples a row, with their boundaries."),
    _chat("--neat-pack", is_flag=True, help="What --pack always does; needs it."),
    _other(
        "--extra-keys",
        "--dataset-additional-keys",
        "extra_keys",
        multiple=True,
        several=True,
        metavar="NAME...",
        help="prompt: further columns to tokenize, such as labels.",
    ),
    _other(
        "--placeholder-token",
        default=STEP_PLACEHOLDER,
        show_default=True,
        metavar="TOKEN",
        help="prm: what ends a step.",
    ),
    _other(
        "--reward-tokens",
        multiple=True,
        several=True,
        metavar="TOKEN...",
        help="prm: the only rewards allowed.",
    ),
    _how("--workers", type=int, help="Processes.  [default: to fit machine and input]"),
    _how(
        "--resume/--no-resume",
        default=True,
        show_default=True,
        help="Go on where a run was killed.",
    ),
    _how("--overwrite", is_flag=True, help="Replace what another run left there."),
    _how(
        "--chunk-mib",
        type=click.FloatRange(min=0, min_open=True),
        default=16,
        show_default=True,
        help="Text between two points of return.",
    ),
)

_THINKING = {"true": "on", "false": "off", "none": "keep"}


def preprocess_options(command: Callable[..., object]) -> Callable[..., object]:
    """Every option of the command, MindSpeed-LLM's without a twin among them."""
    command = old_options(command)
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def configs_of(options: Mapping[str, object]) -> list[PreprocessConfig]:
    """The run of each key, from the values that click found."""
    values = {name: value for name, value in options.items() if name in _FIELDS}
    inputs = cast("dict[str, tuple[str, ...]]", options)
    values["inputs"] = inputs["inputs"] + inputs["more_inputs"]
    values["on_error"] = OnError(cast("str", options["on_error"]))
    values["chunk_bytes"] = max(1, int(cast("float", options["chunk_mib"]) * (1 << 20)))
    values["map_keys"] = _json_of(options["map_keys"], option="--map-keys")
    values["datasets_params"] = _json_of(options["datasets_params"], option="--datasets-params")
    values["thinking"] = _thinking(options)
    values["task"] = _task(options)
    values["template"] = _template(options)
    if options["neat_pack"] and not options["pack"]:
        raise UsageError("--neat-pack needs --pack")
    keys = cast("tuple[str, ...]", options["keys"]) or ("text",)
    if len(set(keys)) != len(keys):
        raise UsageError(f"--key {' '.join(keys)}: want every key once")
    make = cast("Callable[..., PreprocessConfig]", PreprocessConfig)
    configs = [make(**{**values, "key": key}) for key in keys]
    return [_described(config, cast("Path | None", options["dataset_dir"])) for config in configs]


_FIELDS = frozenset(field.name for field in fields(PreprocessConfig))


def _task(options: Mapping[str, object]) -> Task:
    """The task asked for, else the handler's usual one."""
    if options["task"] is not None:
        return Task(cast("str", options["task"]))
    if options["handler"] is None:
        return Task.PRETRAIN
    from llm_data.edge.handlers import tasks_of_handler

    return tasks_of_handler(cast("str", options["handler"]))[0]


def _template(options: Mapping[str, object]) -> str | None:
    """A template's name, or `FILE:NAME` for an entry of a file of templates."""
    name, file = options["template"], options["prompt_type_path"]
    if file is None:
        return cast("str | None", name)
    return str(file) if name is None else f"{file}:{name}"


def _described(config: PreprocessConfig, folder: Path | None) -> PreprocessConfig:
    """The configuration with what a dataset_info.json says of its inputs."""
    if folder is None:
        return config
    from llm_data.edge.handlers import with_dataset_info

    return with_dataset_info(config, folder)


def _thinking(options: Mapping[str, object]) -> str:
    asked, theirs = options["thinking"], options["enable_thinking"]
    if asked and theirs and asked != _THINKING[str(theirs)]:
        raise UsageError(f"--thinking {asked} and --enable-thinking {theirs} contradict each other")
    return str(asked) if asked else _THINKING[str(theirs or "none")]


def _json_of(value: object, *, option: str) -> dict[str, object]:
    """An object written out, or in a file (`@` before its name may be left out)."""
    if value is None:
        return {}
    text = str(value)
    if not text.lstrip().startswith("{"):
        file = Path(text.removeprefix("@"))
        if not file.is_file():
            raise UsageError(f"{option} {text}: neither a JSON object nor a file")
        text = file.read_text(encoding="utf-8")
    try:
        found: object = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{option} {value}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{option} {value}: want a JSON object")
    return cast("dict[str, object]", found)
