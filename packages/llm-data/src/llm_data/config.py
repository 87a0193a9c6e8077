"""What a run is asked to do, and what decides its output."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from llm_data.errors import UsageError
from llm_data.formats.manifest_parts import Source

EOS_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"
NUM_BYTES = 256
STEP_PLACEHOLDER = "ки"

DtypeChoice = Literal["auto", "uint16", "int32"]
BackendChoice = Literal["auto", "hf", "gigatoken"]
FormatChoice = Literal["auto", "text", "alpaca", "sharegpt", "openai"]
ThinkingChoice = Literal["on", "off", "keep"]
TooLongChoice = Literal["drop", "truncate"]


class OnError(StrEnum):
    """What to do with a record that cannot be read."""

    STOP = "stop"
    SKIP = "skip"


class Task(StrEnum):
    """What the data is for; it decides the columns."""

    PRETRAIN = "pretrain"
    SFT = "sft"
    PAIRWISE = "pairwise"
    PRM = "prm"
    PROMPT = "prompt"


_CHAT = frozenset({Task.SFT, Task.PAIRWISE, Task.PROMPT})
_SAMPLES = _CHAT | {Task.PRM}
_PRETRAIN = frozenset({Task.PRETRAIN})

# The tasks an option has a meaning for; options that are not here have one for all.
TASKS_OF_OPTION: Mapping[str, frozenset[Task]] = MappingProxyType(
    {
        "key": _PRETRAIN,
        "append_eod": _PRETRAIN,
        "split_sentences": _PRETRAIN,
        "keep_newlines": _PRETRAIN,
        "language": _PRETRAIN,
        "template": _CHAT,
        "template_date": _CHAT,
        "thinking": _CHAT,
        "seq_length": _SAMPLES,
        "too_long": _SAMPLES,
        "mask_history": frozenset({Task.SFT}),
        "train_on_prompt": frozenset({Task.SFT}),
        "pack": frozenset({Task.SFT}),
        "extra_keys": frozenset({Task.PROMPT}),
        "placeholder_token": frozenset({Task.PRM}),
        "reward_tokens": frozenset({Task.PRM}),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessConfig:
    """One preprocessing run: one dataset. The names are those of the command's options.

    `eos_token` None takes the tokenizer's own, `workers` None fits the machine and the input;
    `chunk_bytes` of text lie between two points of return.
    """

    inputs: Sequence[str | Path]
    tokenizer: Path
    output: Path
    task: Task = Task.PRETRAIN
    key: str = "text"
    patterns: Sequence[str] = ()
    split: str | None = None
    datasets_params: Mapping[str, object] = field(default_factory=dict[str, object])
    format: FormatChoice = "auto"
    handler: str | None = None
    map_keys: Mapping[str, object] = field(default_factory=dict[str, object])
    extra_keys: Sequence[str] = ()
    append_eod: bool = False
    eos_token: str | None = None
    split_sentences: bool = False
    keep_newlines: bool = False
    language: str = "english"
    template: str | None = None
    template_date: str | None = None
    thinking: ThinkingChoice = "keep"
    mask_history: bool = False
    train_on_prompt: bool = False
    seq_length: int | None = None
    too_long: TooLongChoice = "drop"
    pack: bool = False
    placeholder_token: str = STEP_PLACEHOLDER
    reward_tokens: Sequence[str] = ()
    tokenizer_backend: BackendChoice = "auto"
    dtype: DtypeChoice = "auto"
    on_error: OnError = OnError.STOP
    workers: int | None = None
    resume: bool = True
    overwrite: bool = False
    chunk_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        if not self.inputs:
            raise UsageError("no INPUT given: want files or folders")
        if not self.key or "/" in self.key:
            raise UsageError(
                f"--key {self.key!r}: want a name without '/', it is part of file names"
            )
        for name in ("workers", "chunk_bytes", "seq_length"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise UsageError(f"{_flag(name)} {number}, want ≥ 1")
        _check_task(self)
        _check_pairs(self)

    @property
    def stem(self) -> Path:
        """The output's path without its suffix: the manifest's, and a token dataset's pair's."""
        if self.task is not Task.PRETRAIN:
            return self.output.with_name(f"{self.output.name}_packed")
        return self.output.with_name(f"{self.output.name}_{self.key}_{self.level}")

    @property
    def level(self) -> Literal["document", "sentence"]:
        """What one sequence of a pretraining dataset is."""
        return "sentence" if self.split_sentences else "document"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """One training. `special_tokens` come after the end-of-text and the padding token."""

    inputs: Sequence[str | Path]
    output: Path
    vocab_size: int
    special_tokens: Sequence[str] = ()
    key: str = "text"
    patterns: Sequence[str] = ()
    on_error: OnError = OnError.STOP
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.inputs:
            raise UsageError("no INPUT given: want files or folders")
        every = self.every_special_token
        if len(set(every)) != len(every) or "" in every:
            raise UsageError(
                f"special tokens {', '.join(map(repr, every))}: want distinct, not empty"
            )
        least = NUM_BYTES + len(every)
        if self.vocab_size < least:
            raise UsageError(
                f"--vocab-size {self.vocab_size}, want ≥ {least} = {NUM_BYTES} bytes + "
                f"{len(every)} special tokens"
            )

    @property
    def every_special_token(self) -> tuple[str, ...]:
        """In the order of their ids, from 0."""
        return (EOS_TOKEN, PAD_TOKEN, *self.special_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """Everything that decides the output's bytes, and nothing else; `options` by their names."""

    inputs: tuple[str, ...]
    tokenizer: str
    options: Mapping[str, str | int | bool | None]


def differences(then: RunIdentity, now: RunIdentity, *, sources: Sequence[Source]) -> list[str]:
    """What changed between two runs, in words; empty if the output would be the same."""
    found: list[str] = []
    if then.tokenizer != now.tokenizer:
        found.append(f"tokenizer was {then.tokenizer[:12]}, is {now.tokenizer[:12]}")
    found += [
        f"{name} was {then.options.get(name)}, is {now.options.get(name)}"
        for name in dict.fromkeys((*then.options, *now.options))
        if then.options.get(name) != now.options.get(name)
    ]
    if len(then.inputs) != len(now.inputs):
        found.append(f"inputs were {len(then.inputs)}, are {len(now.inputs)}")
    else:
        pairs = zip(then.inputs, sources, strict=True)
        found += [
            f"input {source.path} changed (now {source.files} files, {source.bytes} bytes)"
            for digest, source in pairs
            if digest != source.digest
        ]
    return found


def _check_task(config: PreprocessConfig) -> None:
    """An option that has no meaning for the task is an error, not ignored."""
    for option in fields(config):
        tasks = TASKS_OF_OPTION.get(option.name)
        if tasks is None or config.task in tasks:
            continue
        default = option.default if option.default is not MISSING else None
        if getattr(config, option.name) != default:
            wanted = " or ".join(f"--task {task.value}" for task in Task if task in tasks)
            raise UsageError(
                f"{_flag(option.name)} has no meaning with --task {config.task.value}, "
                f"only with {wanted}"
            )


def _check_pairs(config: PreprocessConfig) -> None:
    """Options that need or exclude each other."""
    if config.mask_history and config.train_on_prompt:
        raise UsageError("--mask-history and --train-on-prompt contradict each other: want one")
    if config.task in _CHAT and config.template is None:
        raise UsageError(
            f"--task {config.task.value} needs --template: a name that `llm-data templates` lists, "
            "a file, or hf for the tokenizer's own"
        )
    if config.pack and config.seq_length is None:
        raise UsageError("--pack needs --seq-length: the length of a row")
    if config.too_long == "truncate" and config.seq_length is None:
        raise UsageError("--too-long truncate needs --seq-length: the length to cut to")
    if config.keep_newlines and not config.split_sentences:
        raise UsageError("--keep-newlines needs --split-sentences")
    if config.task is not Task.PRETRAIN and config.format == "text":
        raise UsageError(
            f"--format text has no roles for --task {config.task.value}; "
            "want auto, alpaca, sharegpt or openai"
        )


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
