"""What llm-train asks of other packages, by shape; providers are found through entry points."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

Shard = tuple[int, int]
"""Tensor-parallel (rank, size) of the piece wanted."""


class WeightSource(Protocol):
    """Weights of one model under megatron-core's names, whatever format they lie in.

    Names carry global layer numbers: `decoder.layers.{layer}.self_attention.linear_qkv.weight`.
    """

    @property
    def arch(self) -> Mapping[str, object]:
        """The arch.json document of the weights."""
        ...

    @property
    def iteration(self) -> int | None:
        """Optimizer steps the weights have seen; None for a Hugging Face folder."""
        ...

    def names(self) -> Sequence[str]:
        """Every tensor that can be read."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the whole tensor, without vocabulary padding."""
        ...

    def read(
        self, name: str, shard: Shard = (0, 1), *, padded_vocab_size: int | None = None
    ) -> "torch.Tensor":
        """The piece that a parallel layer at tensor-parallel `shard` holds; replicated ones whole.

        Vocabulary tensors are zero-padded to `padded_vocab_size` rows before they are cut.
        """
        ...

    def companions(self) -> Sequence[Path]:
        """Files that belong with the weights: tokenizer, config.json and the like."""
        ...


class OpenWeights(Protocol):
    """What the entry point `llm_train.weights` names."""

    def __call__(self, path: Path, *, iteration: int | None = None) -> WeightSource:
        """Open the weights under `path`."""
        ...


class PrepareRawData(Protocol):
    """What the entry point `llm_train.raw_data` names."""

    def __call__(
        self,
        inputs: Sequence[str],
        *,
        tokenizer: Path,
        output: Path,
        key: str,
        patterns: Sequence[str],
        append_eod: bool,
        skip_bad_records: bool,
        workers: int | None,
    ) -> Path:
        """Tokenize files and folders into a token dataset beside `output`; return its prefix.

        A second call with the same arguments finds it done; one that was killed is gone on with;
        a dataset that other arguments or other text made is an error. `workers` None fits the
        machine. Shows its progress on standard error.
        """
        ...


class ExportWeights(Protocol):
    """What the entry point `llm_train.export` names."""

    def __call__(self, checkpoint: Path, *, iteration: int, output: Path) -> None:
        """Write an iteration of the run folder `checkpoint` as a Hugging Face folder `output`."""
        ...


class ExportAdapter(Protocol):
    """What the entry point `llm_train.adapters` names."""

    def __call__(
        self,
        factors: "Mapping[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]",
        *,
        arch: Mapping[str, object],
        alpha: float,
        use_rslora: bool,
        dropout: float,
        base: str | None,
        output: Path,
    ) -> None:
        """Write a PEFT folder `output`, whole or not at all; one that is there is replaced.

        `factors`: by megatron-core's name of a weight [out, in] its A [rank, in], B [out, rank]
        and, for DoRA, the lengths of the adapted rows [out].
        """
        ...
