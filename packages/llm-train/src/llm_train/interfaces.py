"""What llm-train asks of other packages, by shape; providers are found through entry points."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

Shard = tuple[int, int]
"""Tensor-parallel (rank, size) of the piece wanted."""
Columns = Sequence[tuple[int, float]]
"""How many columns of an adapter's B there are, in order, and what B·A is multiplied by there."""


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

    def __call__(
        self,
        checkpoint: Path,
        *,
        iteration: int | None,
        output: Path,
        adapter: Path | None = None,
        replace: "Callable[[str, torch.Tensor], torch.Tensor] | None" = None,
    ) -> None:
        """Write `checkpoint` as a Hugging Face folder `output`: an iteration of a run, or any form.

        With `adapter`, a PEFT folder, merged into its weights, or into what `replace` makes of
        them by their names.
        """
        ...


class ExportAdapter(Protocol):
    """What the entry point `llm_train.adapters` names."""

    def __call__(
        self,
        factors: "Mapping[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]",
        *,
        arch: Mapping[str, object],
        rank: int,
        alpha: float,
        use_rslora: bool,
        dropout: float,
        base: str | None,
        output: Path,
        columns: Mapping[str, Columns] = ...,
        saved: "Mapping[str, torch.Tensor]" = ...,
    ) -> None:
        """Write a PEFT folder `output`, whole or not at all; one that is there is replaced.

        `factors`: by megatron-core's name of a weight [out, in] its A [rank, in], B [out, rank]
        and, for DoRA, the lengths of the adapted rows [out], of an embedding of its columns.
        `columns`, by the same names, are those of AdapterFactors where adapters have others than
        one of `rank` and `alpha`. `saved` are weights that trained whole.
        """
        ...


class AdapterFactors(Protocol):
    """The adapter of one weight [out, in]: A [R, in], B [out, R], DoRA's lengths.

    `learns` [out, R] says which of B learn where several modules of one weight have an A each, so
    that R is the sum of their ranks; None = all.
    """

    @property
    def a(self) -> "torch.Tensor":
        """A."""
        ...

    @property
    def b(self) -> "torch.Tensor":
        """B."""
        ...

    @property
    def lengths(self) -> "torch.Tensor | None":
        """Of DoRA's rows [out], of an embedding's columns [in]."""
        ...

    @property
    def learns(self) -> "torch.Tensor | None":
        """Booleans over B."""
        ...

    @property
    def columns(self) -> Columns:
        """Of all modules of the weight together, or of each; 0 of one without an adapter."""
        ...


class AdapterSource(Protocol):
    """A PEFT folder under megatron-core's names of the weights that it adapts."""

    @property
    def rank(self) -> int:
        """Of every module that has none of its own."""
        ...

    @property
    def scaling(self) -> float:
        """What B·A is multiplied by, for the same modules."""
        ...

    @property
    def is_dora(self) -> bool:
        """It has lengths of rows."""
        ...

    def names(self) -> Sequence[str]:
        """The adapted weights."""
        ...

    def read(self, name: str) -> AdapterFactors:
        """What it has for one of them."""
        ...

    def saved_names(self) -> Sequence[str]:
        """The weights that it has whole because they trained."""
        ...

    def copied_names(self) -> Sequence[str]:
        """Those that it has whole as the base has them."""
        ...

    def read_whole(self, name: str) -> "torch.Tensor":
        """One of either."""
        ...


class OpenAdapter(Protocol):
    """What the entry point `llm_train.adapter_sources` names."""

    def __call__(self, folder: Path, *, arch: Mapping[str, object]) -> AdapterSource:
        """Open a PEFT folder for the model of an arch.json document."""
        ...
