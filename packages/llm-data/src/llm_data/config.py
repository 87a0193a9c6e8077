"""What a run is asked to do, and what decides its output."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from llm_data.errors import UsageError
from llm_data.formats.manifest import Manifest, Source

EOS_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"
NUM_BYTES = 256

DtypeChoice = Literal["auto", "uint16", "int32"]


class OnError(StrEnum):
    """What to do with a record that cannot be read."""

    STOP = "stop"
    SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessConfig:
    """One preprocessing run. `eos_token` None takes the tokenizer's own, `workers` None fits
    the machine and the input; `chunk_bytes` of text lie between two points of return.
    """

    inputs: Sequence[Path]
    tokenizer: Path
    output: Path
    key: str = "text"
    patterns: Sequence[str] = ()
    append_eod: bool = False
    eos_token: str | None = None
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
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"--workers {self.workers}, want ≥ 1")
        if self.chunk_bytes < 1:
            raise UsageError(f"a chunk of {self.chunk_bytes} bytes, want ≥ 1")

    @property
    def stem(self) -> Path:
        """The output's path without its suffix: `<prefix>_<key>_document`."""
        return self.output.with_name(f"{self.output.name}_{self.key}_document")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """One training. `special_tokens` come after the end-of-text and the padding token."""

    inputs: Sequence[Path]
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
    """Everything that decides the output's bytes, and nothing else."""

    inputs: tuple[str, ...]
    tokenizer: str
    eod_id: int | None
    key: str
    dtype: str
    on_error: str


def identity_of(manifest: Manifest) -> RunIdentity:
    """The identity of the run that wrote a manifest."""
    return RunIdentity(
        inputs=tuple(source.digest for source in manifest.sources),
        tokenizer=manifest.tokenizer.digest,
        eod_id=manifest.eod_id,
        key=manifest.key,
        dtype=manifest.dtype,
        on_error=manifest.on_error,
    )


def differences(then: RunIdentity, now: RunIdentity, *, sources: Sequence[Source]) -> list[str]:
    """What changed between two runs, in words; empty if the output would be the same."""
    found = [
        f"{name} was {before}, is {after}"
        for name, before, after in (
            ("tokenizer", then.tokenizer[:12], now.tokenizer[:12]),
            ("eod id", then.eod_id, now.eod_id),
            ("key", then.key, now.key),
            ("dtype", then.dtype, now.dtype),
            ("on-error", then.on_error, now.on_error),
        )
        if before != after
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
