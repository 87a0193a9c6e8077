"""What llm-train asks of other packages, by shape; providers are found through entry points."""

from collections.abc import Callable, Collection, Mapping, Sequence
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
    ) -> None:
        """Write a PEFT folder `output`, whole or not at all; one that is there is replaced.

        `factors`: by megatron-core's name of a weight [out, in] its A [rank, in], B [out, rank]
        and, for DoRA, the lengths of the adapted rows [out]. A of several times `rank` rows is one
        of each Hugging Face module that the weight is made of, as AdapterFactors has them.
        """
        ...


class AdapterFactors(Protocol):
    """The adapter of one weight [out, in]: A [R, in], B [out, R], DoRA's lengths [out].

    `learns` [out, R] says which of B learn where several modules of one weight have an A each, so
    that R is a multiple of the rank; None = all.
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
        """Of DoRA's rows."""
        ...

    @property
    def learns(self) -> "torch.Tensor | None":
        """Booleans over B."""
        ...


class AdapterSource(Protocol):
    """A PEFT folder under megatron-core's names of the weights that it adapts."""

    @property
    def rank(self) -> int:
        """Of every module."""
        ...

    @property
    def scaling(self) -> float:
        """What B·A is multiplied by."""
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


class OpenAdapter(Protocol):
    """What the entry point `llm_train.adapter_sources` names."""

    def __call__(self, folder: Path, *, arch: Mapping[str, object]) -> AdapterSource:
        """Open a PEFT folder for the model of an arch.json document."""
        ...


class RmsNorm(Protocol):
    """`x / rms(x) * (weight + offset)` over the last axis of x."""

    def __call__(
        self, x: "torch.Tensor", weight: "torch.Tensor", *, eps: float, offset: float = 0.0
    ) -> "torch.Tensor":
        """In x's shape and dtype."""
        ...


class LayerNorm(Protocol):
    """`(x - mean) / deviation * (weight + offset) + bias` over the last axis of x."""

    def __call__(
        self,
        x: "torch.Tensor",
        weight: "torch.Tensor",
        bias: "torch.Tensor | None" = None,
        *,
        eps: float,
        offset: float = 0.0,
    ) -> "torch.Tensor":
        """In x's shape and dtype."""
        ...


class Swiglu(Protocol):
    """`silu(gate) * up` of a last axis that holds gate, then up."""

    def __call__(self, x: "torch.Tensor") -> "torch.Tensor":
        """[..., 2 · F] → [..., F]; x is not empty."""
        ...


class RotaryEmbedding(Protocol):
    """Turns the first R features of every head."""

    def __call__(
        self,
        x: "torch.Tensor",
        cos: "torch.Tensor",
        sin: "torch.Tensor",
        *,
        interleaved: bool = False,
    ) -> "torch.Tensor":
        """X [T, B, H, D], tables [T, 1 or B, 1, R], one entry a feature → [T, B, H, D]."""
        ...


class SoftmaxAttention(Protocol):
    """Attention of grouped queries."""

    def __call__(
        self,
        q: "torch.Tensor",
        k: "torch.Tensor",
        v: "torch.Tensor",
        *,
        causal: bool,
        scale: float | None = None,
        window: int | None = None,
        sinks: "torch.Tensor | None" = None,
        cu_seqlens: Sequence[int] | None = None,
    ) -> "torch.Tensor":
        """Q [B, T, H, D], k [B, T, G, D], v [B, T, G, E] → [B, T, H, E].

        `window` counts the tokens a query sees, itself included. `cu_seqlens` are the bounds of
        the documents in all rows, one after another, from 0 to B · T.
        """
        ...


class CrossEntropy(Protocol):
    """The loss of each row of logits."""

    def __call__(
        self, logits: "torch.Tensor", targets: "torch.Tensor", *, ignore_index: int = -100
    ) -> "torch.Tensor":
        """[N, V] and [N] → [N] in fp32."""
        ...


AllReduce = Callable[["torch.Tensor"], "torch.Tensor"]
"""A reduction over ranks, which may write to its argument."""


class VocabParallelCrossEntropy(Protocol):
    """The loss of each row of logits that lie cut over ranks."""

    def __call__(
        self,
        logits: "torch.Tensor",
        targets: "torch.Tensor",
        *,
        vocab_start: int,
        all_reduce_max: AllReduce,
        all_reduce_sum: AllReduce,
        ignore_index: int = -100,
    ) -> "torch.Tensor":
        """[N, V / ranks] from word `vocab_start` on, and [N] → [N] in fp32 on every rank."""
        ...


class LinearCrossEntropy(Protocol):
    """The loss of each row of logits that exist some rows at a time."""

    def __call__(
        self,
        hidden: "torch.Tensor",
        weight: "torch.Tensor",
        targets: "torch.Tensor",
        *,
        ignore_index: int = -100,
        chunk_rows: int | None = None,
    ) -> "torch.Tensor":
        """[N, H], [V, H] and [N] → [N] in fp32; `chunk_rows` at a time, None = as it finds best."""
        ...


class GroupedMatmul(Protocol):
    """Each group of rows times a matrix of its own."""

    def __call__(
        self,
        x: "torch.Tensor",
        weight: "torch.Tensor",
        group_sizes: "torch.Tensor | Sequence[int]",
    ) -> "torch.Tensor":
        """[M, K] · [E, K, N] → [M, N]; sizes [E] sum to M, which may be 0."""
        ...


class Permute(Protocol):
    """A copy of every token for each of its experts, sorted by expert."""

    def __call__(
        self, tokens: "torch.Tensor", experts: "torch.Tensor"
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """[N, H] and [N, K] → copies [N · K, H], and the row of each [N · K] int32."""
        ...


class Unpermute(Protocol):
    """The weighted sum of each token's copies."""

    def __call__(
        self, copies: "torch.Tensor", rows: "torch.Tensor", weights: "torch.Tensor"
    ) -> "torch.Tensor":
        """Copies and rows as Permute gives them, weights [N, K] → [N, H]."""
        ...


class Kernels(Protocol):
    """The fused operators that layers are built of; `str` of it says what computes each."""

    @property
    def rms_norm(self) -> RmsNorm:
        """Norms of layers, heads and latents."""
        ...

    @property
    def layer_norm(self) -> LayerNorm:
        """Norms of models that have layer norms."""
        ...

    @property
    def swiglu(self) -> Swiglu:
        """Feed-forwards and experts with a SiLU gate."""
        ...

    @property
    def rope(self) -> RotaryEmbedding:
        """Rotary positions."""
        ...

    @property
    def attention(self) -> SoftmaxAttention:
        """Causal attention."""
        ...

    @property
    def cross_entropy(self) -> CrossEntropy:
        """The loss, where one rank holds all logits."""
        ...

    @property
    def vocab_parallel_cross_entropy(self) -> VocabParallelCrossEntropy:
        """The loss over tensor-parallel ranks."""
        ...

    @property
    def linear_cross_entropy(self) -> LinearCrossEntropy:
        """The loss in parts, where one rank holds the whole output layer."""
        ...

    @property
    def grouped_matmul(self) -> GroupedMatmul:
        """Linears of all experts of a rank."""
        ...

    @property
    def permute(self) -> Permute:
        """Tokens on their way to experts."""
        ...

    @property
    def unpermute(self) -> Unpermute:
        """Tokens on their way back."""
        ...


class OpenKernels(Protocol):
    """What the entry points of `llm_train.kernels` name."""

    def __call__(self, *, device: str, features: Mapping[str, Collection[str]]) -> Kernels:
        """The operators for `cpu`, `cuda` or `npu`.

        `features` names by operator what the model will ask for beyond the ordinary: `window`,
        `sinks` and `documents` of attention.
        """
        ...
