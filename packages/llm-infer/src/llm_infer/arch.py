"""What a model is: `arch.json` version 1, read and checked.

Contract: tests/contracts/arch/SPEC.md.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from llm_infer.errors import InferError

Activation = Literal["silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2"]


class ArchError(InferError):
    """An arch.json that breaks a rule of its contract."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Norm(_Part):
    """The norm of every block."""

    kind: Literal["rms", "layer"]
    eps: float
    zero_centered: bool
    placement: Literal["pre", "sandwich", "post"]


class LayerRun(_Part):
    """`count` equal layers in a row."""

    count: PositiveInt
    mixer: Literal["attention", "mla", "gdn", "mamba2", "none"]
    feed_forward: Literal["dense", "moe", "dense_shortcut_moe", "none"]
    window: PositiveInt | None
    rope: bool


class Attention(_Part):
    """Softmax attention: heads, biases and what is done to queries, keys and scores."""

    heads: PositiveInt
    query_groups: PositiveInt
    head_dim: PositiveInt
    qkv_bias: bool
    out_bias: bool
    qk_norm: Literal["none", "head", "full", "head_after_rope"]
    softcap: float | None
    sinks: bool
    scale: float | None
    output_gate: bool
    shared_kv: PositiveInt

    @model_validator(mode="after")
    def _heads_fill_groups(self) -> "Attention":
        if self.heads % self.query_groups:
            raise ValueError(
                f"heads({self.heads}) is not a multiple of query_groups({self.query_groups})"
            )
        return self


class Indexer(_Part):
    """The sparse-attention indexer of an MLA layer."""

    heads: PositiveInt
    head_dim: PositiveInt
    top_k: PositiveInt
    rope_interleaved: bool
    borrowing_layers: tuple[PositiveInt, ...]


class Mla(_Part):
    """Multi-head latent attention."""

    heads: PositiveInt
    q_lora_rank: PositiveInt | None
    kv_lora_rank: PositiveInt
    qk_nope_head_dim: PositiveInt
    qk_rope_head_dim: PositiveInt
    v_head_dim: PositiveInt
    scale: float | None
    norm_eps: float
    down_bias: bool
    out_bias: bool
    q_scale: float
    kv_scale: float
    indexer: Indexer | None

    def has_indexer(self, layer: int) -> bool:
        """Whether a layer chooses keys itself."""
        return self.indexer is not None and layer not in self.indexer.borrowing_layers


class Gdn(_Part):
    """Gated delta net (https://arxiv.org/abs/2412.06464), a linear attention."""

    key_heads: PositiveInt
    value_heads: PositiveInt
    key_head_dim: PositiveInt
    value_head_dim: PositiveInt
    conv_kernel: PositiveInt


class Mamba2(_Part):
    """Mamba2 mixer (https://arxiv.org/abs/2405.21060); inner width `heads * head_dim`."""

    heads: PositiveInt
    head_dim: PositiveInt
    groups: PositiveInt
    state_dim: PositiveInt
    conv_kernel: PositiveInt
    chunk: PositiveInt
    conv_bias: bool
    proj_bias: bool
    gated_norm: bool


class LinearScaling(_Part):
    """Positions divided by `factor`, always or beyond the trained length."""

    kind: Literal["linear", "dynamic"]
    factor: float


class Llama3Scaling(_Part):
    """Long waves stretched, short ones kept (Llama 3.1)."""

    kind: Literal["llama3"]
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: PositiveInt


class YarnScaling(_Part):
    """YaRN: interpolation by wave length, with an attention factor."""

    kind: Literal["yarn"]
    factor: float
    original_max_position_embeddings: PositiveInt
    beta_fast: float
    beta_slow: float
    mscale: float | None
    mscale_all_dim: float | None
    truncate: bool


class LongRopeScaling(_Part):
    """LongRoPE: one factor a frequency, short and long contexts apart."""

    kind: Literal["longrope"]
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position_embeddings: PositiveInt
    attention_factor: float | None


RopeScaling = Annotated[
    LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling, Field(discriminator="kind")
]


class Rope(_Part):
    """Rotary positions."""

    kind: Literal["rope"]
    base: float
    fraction: float
    interleaved: bool
    scaling: RopeScaling | None


class OtherPosition(_Part):
    """Positions without parameters of their own here."""

    kind: Literal["alibi", "learned", "none"]


class Mlp(_Part):
    """The dense feed-forward."""

    activation: Activation
    gated: bool
    ffn_hidden_size: PositiveInt
    bias: bool
    clamp: float | None
    glu_offset: float


class SharedExpert(_Part):
    """Experts that see every token."""

    ffn_hidden_size: PositiveInt
    gated: bool


class Router(_Part):
    """How tokens choose experts."""

    score: Literal["softmax", "sigmoid", "sqrtsoftplus", "sparsemixer"]
    pre_softmax: bool
    normalize: bool
    scaling: float
    bias: bool
    groups: PositiveInt | None
    top_groups: PositiveInt | None
    group_score: Literal["max", "top2"]
    linear_bias: bool
    zero_experts: NonNegativeInt


class Moe(_Part):
    """The mixture-of-experts feed-forward."""

    experts: PositiveInt
    top_k: PositiveInt
    ffn_hidden_size: PositiveInt
    activation: Activation
    gated: bool
    bias: bool
    clamp: float | None
    glu_offset: float
    shared: SharedExpert | None
    router: Router


class Mtp(_Part):
    """Multi-token prediction layers."""

    layers: PositiveInt


class Scalars(_Part):
    """Multipliers on the way; 1.0 changes nothing."""

    embedding: float
    residual: float
    logits: float
    logit_softcap: float | None


class Arch(_Part):
    """Architecture facts of one decoder-only language model. Sizes are in elements."""

    format: Literal["arch"]
    version: Literal[1]
    family: str
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    max_position_embeddings: PositiveInt
    tie_embeddings: bool
    output_bias: bool
    output_normalized: bool
    embedding_norm: bool
    norm: Norm
    layers: tuple[LayerRun, ...]
    attention: Attention | None
    mla: Mla | None
    gdn: Gdn | None
    mamba2: Mamba2 | None
    position: Annotated[Rope | OtherPosition, Field(discriminator="kind")]
    mlp: Mlp | None
    moe: Moe | None
    mtp: Mtp | None
    scalars: Scalars

    @property
    def num_layers(self) -> int:
        """Layers of the decoder."""
        return sum(run.count for run in self.layers)

    def each_layer(self) -> Iterator[LayerRun]:
        """One entry a layer, in order."""
        for run in self.layers:
            for _ in range(run.count):
                yield run

    @model_validator(mode="after")
    def _parts_match_layers(self) -> "Arch":
        used = {run.mixer for run in self.layers} | {run.feed_forward for run in self.layers}
        for part, kinds in _KINDS_OF_PARTS.items():
            _require_exactly(bool(used & kinds), getattr(self, part) is not None, part, kinds)
        return self


_KINDS_OF_PARTS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "attention": frozenset({"attention"}),
        "mla": frozenset({"mla"}),
        "gdn": frozenset({"gdn"}),
        "mamba2": frozenset({"mamba2"}),
        "mlp": frozenset({"dense", "dense_shortcut_moe"}),
        "moe": frozenset({"moe", "dense_shortcut_moe"}),
    }
)


def _require_exactly(used: bool, present: bool, part: str, kinds: frozenset[str]) -> None:
    if used != present:
        state = "null" if used else "an object"
        wanted = "an object" if used else "null"
        raise ValueError(
            f"{part} is {state}, want {wanted}: "
            f"{'some' if used else 'no'} layer uses {' or '.join(sorted(kinds))} (arch.json v1)"
        )


def parse(document: Mapping[str, object], *, where: str) -> Arch:
    """The checked facts of one arch.json document; `where` names it in errors.

    Raises ArchError naming the key, what was found, what was wanted and, for an unknown key,
    the nearest known one.
    """
    try:
        # Through JSON: strict about numbers, yet a list is a list.
        return Arch.model_validate_json(json.dumps(document), strict=True)
    except ValidationError as error:
        lines = [_explain(item["loc"], item["type"], item["msg"]) for item in error.errors()]
        raise ArchError(f"{where}: not a valid arch.json v1: " + "; ".join(lines)) from None


def _explain(loc: tuple[str | int, ...], kind: str, message: str) -> str:
    path = ".".join(str(part) for part in loc)
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(loc[-1]), _all_keys(), n=1)
        return f"{path}: unknown key" + (f"; did you mean {near[0]}?" if near else "")
    return f"{path}: {message}" if path else message


def _all_keys() -> list[str]:
    parts = [Arch, *_Part.__subclasses__()]
    return sorted({name for part in parts for name in part.model_fields})
