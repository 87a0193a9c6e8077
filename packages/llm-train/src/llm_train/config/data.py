"""What a run trains on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from llm_train.config.section import Count, Fraction, Positive, Section


class RawConfig(Section):
    """Raw text that the run tokenizes once, before it trains, into `save.path`/data."""

    train: tuple[str, ...] = Field(
        min_length=1,
        description="files and folders of text to train on, at least one, as llm-data reads them",
    )
    valid: tuple[str, ...] = Field(
        default=(), description="files and folders of text to evaluate on"
    )
    tokenizer: Path | None = Field(
        default=None, description="tokenizer.json or its folder; null = the one in model.load"
    )
    key: str = Field(default="text", description="key or column that holds the text")
    patterns: tuple[str, ...] = Field(
        default=(), description="globs of the files to take from folders; empty = known suffixes"
    )
    append_eod: bool = Field(
        default=True, description="end every document with the tokenizer's end-of-text token"
    )
    skip_bad_records: bool = Field(
        default=False, description="set unreadable records aside and count them, not stop"
    )
    workers: Count | None = Field(
        default=None, description="tokenizing processes; null = to fit machine and input"
    )


class DataConfig(Section):
    """What to train on: token datasets, named by the prefix of their `.bin` and `.idx`, or text."""

    train: tuple[Path, ...] = Field(
        default=(),
        description="dataset prefixes to train on, at least one unless raw is set; of sample "
        "datasets (stage: sft) what llm-data was given as --output",
    )
    raw: RawConfig | None = Field(
        default=None, description="raw text instead of train and valid; needs llm-data"
    )
    weights: tuple[Positive, ...] | None = Field(
        default=None,
        description="sampling weight of each train prefix, by samples; null = in proportion to its "
        "tokens, of sample datasets (stage: sft) every row once an epoch",
    )
    valid: tuple[Path, ...] = Field(
        default=(), description="dataset prefixes to evaluate on; empty = none, or valid_fraction"
    )
    valid_fraction: Fraction = Field(
        default=0.0,
        description="share of the train documents (stage: sft: of each dataset's rows) held out "
        "when valid is empty",
    )
    cache_dir: Path | None = Field(
        default=None, description="folder of sample indices; null = beside each dataset"
    )
    reset_documents: bool = Field(
        default=False,
        description="attention and positions restart at every document in a row, and no token is "
        "trained to predict the next document's first",
    )
    num_workers: int = Field(default=0, ge=0, description="loader processes per rank; 0 = none")
    allow_tokenizer_mismatch: bool = Field(
        default=False, description="train although dataset and model name different tokenizers"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.train) == (self.raw is not None):
            found = "both" if self.train else "neither"
            raise ValueError(f"found {found} of train and raw, wanted exactly one of them")
        if self.raw is not None and self.raw.valid and self.valid:
            raise ValueError("found valid and raw.valid, wanted at most one of them")
        if self.raw is not None and self.weights is not None:
            raise ValueError("weights is for several train prefixes; raw.train becomes one dataset")
        if self.weights is not None and len(self.weights) != len(self.train):
            raise ValueError(
                f"weights has {len(self.weights)} entries, train has {len(self.train)}: wanted one "
                "weight per prefix"
            )
        if self.weights is not None and not math.isfinite(sum(self.weights)):
            raise ValueError(
                f"weights sum up to {sum(self.weights)}, wanted a finite sum: only their ratios "
                "count"
            )
        if self.has_valid and self.valid_fraction > 0:
            raise ValueError(
                f"found valid and valid_fraction={self.valid_fraction}, wanted at most one: "
                "valid_fraction splits train only when valid is empty"
            )
        return self

    @property
    def has_valid(self) -> bool:
        """There are datasets, or text, to evaluate on alone."""
        return bool(self.valid) or (self.raw is not None and bool(self.raw.valid))
