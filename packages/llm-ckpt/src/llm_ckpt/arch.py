"""arch.json version 1: what a decoder-only language model is, in primitives and sizes.

The contract is tests/contracts/arch/SPEC.md. This module is its only writer.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from llm_ckpt.errors import ArchError, suggest

Activation = Literal["silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        known = list(cls.model_fields)
        for key in cast("dict[str, object]", data):
            if key not in known:
                raise ValueError(
                    f"unknown key {key!r}{suggest(key, known)} (keys: {', '.join(known)})"
                )
        return cast("object", data)


class Norm(_Strict):
    """Normalisation layers."""

    kind: Literal["rms", "layer"]
    eps: PositiveFloat
    zero_centered: bool
    placement: Literal["pre", "sandwich", "post"]


class LayerRun(_Strict):
    """`count` consecutive layers of one kind."""

    count: PositiveInt
    mixer: Literal["attention", "mla", "gdn", "mamba2", "none"]
    feed_forward: Literal["dense", "moe", "dense_shortcut_moe", "none"]
    window: PositiveInt | None
    rope: bool


class Attention(_Strict):
    """Multi-head attention with `query_groups` key/value heads."""

    heads: PositiveInt
    query_groups: PositiveInt
    head_dim: PositiveInt
    qkv_bias: bool
    out_bias: bool
    qk_norm: Literal["none", "head", "full", "head_after_rope"]
    softcap: PositiveFloat | None
    sinks: bool
    scale: PositiveFloat | None
    output_gate: bool
    shared_kv: PositiveInt

    @model_validator(mode="after")
    def _groups_are_whole(self) -> "Attention":
        if self.heads % self.query_groups:
            raise ValueError(
                f"heads({self.heads}) is not a multiple of query_groups({self.query_groups})"
            )
        return self


class Indexer(_Strict):
    """Sparse-attention indexer of MLA; `borrowing_layers` use an earlier layer's choice."""

    heads: PositiveInt
    head_dim: PositiveInt
    top_k: PositiveInt
    rope_interleaved: bool
    borrowing_layers: Annotated[tuple[PositiveInt, ...], Field(strict=False)]


class Mla(_Strict):
    """Multi-head latent attention."""

    heads: PositiveInt
    q_lora_rank: PositiveInt | None
    kv_lora_rank: PositiveInt
    qk_nope_head_dim: PositiveInt
    qk_rope_head_dim: PositiveInt
    v_head_dim: PositiveInt
    scale: PositiveFloat | None
    norm_eps: PositiveFloat
    down_bias: bool
    out_bias: bool
    q_scale: PositiveFloat
    kv_scale: PositiveFloat
    indexer: Indexer | None


class Gdn(_Strict):
    """Gated delta net (https://arxiv.org/abs/2412.06464), a linear attention."""

    key_heads: PositiveInt
    value_heads: PositiveInt
    key_head_dim: PositiveInt
    value_head_dim: PositiveInt
    conv_kernel: PositiveInt


class Mamba2(_Strict):
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


class FactorScaling(_Strict):
    """Positions (linear) or base (dynamic) scaled by one factor."""

    kind: Literal["linear", "dynamic"]
    factor: PositiveFloat


class Llama3Scaling(_Strict):
    """Frequency-dependent scaling of Llama 3.1."""

    kind: Literal["llama3"]
    factor: PositiveFloat
    low_freq_factor: PositiveFloat
    high_freq_factor: PositiveFloat
    original_max_position_embeddings: PositiveInt


class YarnScaling(_Strict):
    """YaRN (https://arxiv.org/abs/2309.00071)."""

    kind: Literal["yarn"]
    factor: PositiveFloat
    original_max_position_embeddings: PositiveInt
    beta_fast: PositiveFloat
    beta_slow: PositiveFloat
    mscale: NonNegativeFloat | None
    mscale_all_dim: NonNegativeFloat | None
    truncate: bool


class LongRopeScaling(_Strict):
    """LongRoPE: one factor a frequency, two sets."""

    kind: Literal["longrope"]
    short_factor: Annotated[tuple[float, ...], Field(strict=False)]
    long_factor: Annotated[tuple[float, ...], Field(strict=False)]
    original_max_position_embeddings: PositiveInt
    attention_factor: PositiveFloat | None


Scaling = FactorScaling | Llama3Scaling | YarnScaling | LongRopeScaling


class Rope(_Strict):
    """Rotary positions on the first `fraction` of each head."""

    kind: Literal["rope"]
    base: PositiveFloat
    fraction: Annotated[float, Field(gt=0, le=1)]
    interleaved: bool
    scaling: Annotated[Scaling, Field(discriminator="kind")] | None


class OtherPosition(_Strict):
    """A position signal without parameters of its own here."""

    kind: Literal["alibi", "learned", "none"]


class Mlp(_Strict):
    """Dense feed-forward."""

    activation: Activation
    gated: bool
    ffn_hidden_size: PositiveInt
    bias: bool
    clamp: PositiveFloat | None
    glu_offset: float


class SharedExpert(_Strict):
    """Experts every token visits, as one feed-forward."""

    ffn_hidden_size: PositiveInt
    gated: bool


class Router(_Strict):
    """How tokens choose experts."""

    score: Literal["softmax", "sigmoid", "sqrtsoftplus", "sparsemixer"]
    pre_softmax: bool
    normalize: bool
    scaling: PositiveFloat
    bias: bool
    groups: PositiveInt | None
    top_groups: PositiveInt | None
    group_score: Literal["max", "top2"]
    linear_bias: bool
    zero_experts: NonNegativeInt


class Moe(_Strict):
    """Mixture of experts."""

    experts: PositiveInt
    top_k: PositiveInt
    ffn_hidden_size: PositiveInt
    activation: Activation
    gated: bool
    bias: bool
    clamp: PositiveFloat | None
    glu_offset: float
    shared: SharedExpert | None
    router: Router


class Mtp(_Strict):
    """Multi-token prediction layers."""

    layers: PositiveInt


class Scalars(_Strict):
    """Multipliers; 1.0 is neutral."""

    embedding: float
    residual: float
    logits: float
    logit_softcap: PositiveFloat | None


class Arch(_Strict):
    """One arch.json document."""

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
    layers: Annotated[tuple[LayerRun, ...], Field(strict=False, min_length=1)]
    attention: Attention | None
    mla: Mla | None
    gdn: Gdn | None
    mamba2: Mamba2 | None
    position: Annotated[Rope | OtherPosition, Field(discriminator="kind")]
    mlp: Mlp | None
    moe: Moe | None
    mtp: Mtp | None
    scalars: Scalars

    @model_validator(mode="after")
    def _blocks_match_layers(self) -> "Arch":
        mixers = {run.mixer for run in self.layers}
        feeds = {run.feed_forward for run in self.layers}
        needed = {
            "attention": "attention" in mixers,
            "mla": "mla" in mixers,
            "gdn": "gdn" in mixers,
            "mamba2": "mamba2" in mixers,
            "mlp": bool(feeds & {"dense", "dense_shortcut_moe"}),
            "moe": bool(feeds & {"moe", "dense_shortcut_moe"}),
        }
        for key, is_needed in needed.items():
            if (getattr(self, key) is not None) != is_needed:
                want = "an object, since a layer uses it" if is_needed else "null: no layer uses it"
                raise ValueError(f"{key} must be {want}")
        return self

    @property
    def num_layers(self) -> int:
        """Layers, counting every run."""
        return sum(run.count for run in self.layers)

    def each_layer(self) -> Iterator[LayerRun]:
        """One entry a layer, in order."""
        for run in self.layers:
            for _ in range(run.count):
                yield run

    def document(self) -> dict[str, Any]:
        """The JSON object, every key present."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """SHA-256 of the canonical serialisation (SPEC.md)."""
        text = json.dumps(
            self.document(), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def dumps(self) -> str:
        """The text of arch.json."""
        return json.dumps(self.document(), indent=2, ensure_ascii=False) + "\n"


def parse_arch(document: object, *, where: str) -> Arch:
    """Check a JSON object against the contract; `where` names its file in errors."""
    if not isinstance(document, dict):
        raise ArchError(f"{where}: found {type(document).__name__}, want a JSON object")
    head = cast("dict[str, object]", document)
    if head.get("format") != "arch" or head.get("version") != 1:
        raise ArchError(
            f"{where}: found format {head.get('format')!r} version {head.get('version')!r}, "
            'want format "arch" version 1'
        )
    try:
        return Arch.model_validate(head)
    except ValidationError as error:
        lines = [_say(problem) for problem in error.errors()]
        raise ArchError(f"{where}: " + "\n".join(lines)) from None


def parse_arch_text(text: str, *, where: str) -> Arch:
    """As `parse_arch`, from the file's text."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ArchError(f"{where}: not JSON: {error}") from None
    return parse_arch(document, where=where)


def differences(left: Arch, right: Arch) -> list[str]:
    """Dotted keys whose values differ, `family` aside (it is provenance)."""
    return [key for key in _compare(left.document(), right.document(), "") if key != "family"]


def _compare(left: object, right: object, path: str) -> Iterator[str]:
    if isinstance(left, dict) and isinstance(right, dict):
        a, b = cast("dict[str, object]", left), cast("dict[str, object]", right)
        for key in sorted(a.keys() | b.keys()):
            yield from _compare(a.get(key), b.get(key), f"{path}.{key}" if path else key)
    elif left != right:
        yield path


def _say(problem: ErrorDetails) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    text = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "missing":
        text = "missing key"
    elif problem["type"] not in ("value_error", "extra_forbidden"):
        text += f" (found {problem['input']!r})"
    return f"{path}: {text}" if path else text
