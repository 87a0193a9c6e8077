"""How a rank's state dict spells the parameters of a layer: one table for each program that has its
own way.

megatron-core's local spec has the canonical names. Transformer Engine keeps norms inside linears.
MindSpeed-LLM joins MLA's down projections, may split the up projections, keeps linear attention as
Hugging Face has it, and renames what belongs to prediction layers. A name that no table has is
spelled as it is.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from llm_ckpt.arch import Arch, Attention, Gdn, Mla
from llm_ckpt.errors import ArchError, LayoutError
from llm_ckpt.layout import Shard

DialectName = Literal["megatron", "mindspeed", "legacy"]
Implementation = Literal["local", "transformer_engine"]
ExpertLayout = Literal["sequential", "grouped", "te"]
EXPERT_LAYOUTS: tuple[ExpertLayout, ...] = ("sequential", "grouped", "te")
Ranges = tuple[tuple[int, int], ...]
# (architecture, rows of a parameter's piece, tensor-parallel rank) → the rows stored, in order
Rows = Callable[[Arch, int, Shard], Ranges]


@dataclass(frozen=True, slots=True)
class Spelling:
    """A stored tensor and the parameters it holds, end to end on axis 0.

    `rows` picks rows of the piece. `is_whole`: every rank holds all of it, however the parameter is
    cut. `needs` is a parameter without which this spelling is not meant. `{m}` is a prediction
    layer. Names are relative to the layer.
    """

    stored: str
    parts: tuple[str, ...]
    rows: Rows | None = None
    is_whole: bool = False
    needs: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The program and the options of it that name and order tensors."""

    name: DialectName = "megatron"
    implementation: Implementation = "local"
    experts: ExpertLayout = "sequential"
    splits_mla: bool = False

    def spellings(self, arch: Arch, *, is_prediction: bool) -> tuple[Spelling, ...]:
        """The tables to use; `is_prediction`: for a layer of multi-token prediction."""
        if self.name == "legacy":
            self._check_legacy(arch)
            return LEGACY
        is_te = self.implementation == "transformer_engine"
        stack = MAMBA_STACK if arch.mamba2 is not None else ()
        if self.name == "megatron":
            if self.splits_mla:
                raise LayoutError("mla-mm-split is for --dialect mindspeed, found megatron")
            return (*(FUSED_NORMS if is_te else (*LOCAL_MLA, *LOCAL_MAMBA)), *stack)
        # MindSpeed-LLM's Transformer Engine spec leaves the norms of prediction layers apart.
        norms = MINDSPEED_FUSED_NORMS if is_te and not is_prediction else ()
        split = SPLIT_MLA if self.splits_mla else ()
        apart = MINDSPEED_APART if arch.gdn is not None else ()
        mamba = stack if is_te else (*LOCAL_MAMBA, *stack)
        return (*split, *apart, *norms, *mamba, *MINDSPEED)

    def _check_legacy(self, arch: Arch) -> None:
        """Refuse what Megatron's legacy models do not have."""
        attention = arch.attention
        facts = {
            "layers other than attention with a dense feed-forward": any(
                (run.mixer, run.feed_forward) != ("attention", "dense") for run in arch.layers
            ),
            "multi-token prediction": arch.mtp is not None,
            f"norm.placement {arch.norm.placement}": arch.norm.placement != "pre",
            "norms, sinks or gates in attention": attention is not None
            and (attention.qk_norm != "none" or attention.sinks or attention.output_gate),
            "--transformer-impl, --expert-layout or --mla-mm-split": (
                (self.implementation, self.experts, self.splits_mla)
                != ("local", "sequential", False)
            ),
        }
        if found := [name for name, is_used in facts.items() if is_used]:
            raise LayoutError(f"--dialect legacy has no {', '.join(found)}")


def every_spelling() -> tuple[Spelling, ...]:
    """All tables: what a reader accepts beside the canonical names."""
    local = (LOCAL_MLA, LOCAL_MAMBA, MAMBA_STACK, FUSED_NORMS)
    theirs = (SPLIT_MLA, MINDSPEED_FUSED_NORMS, MINDSPEED_APART, MINDSPEED, MINDSPEED_OLD)
    local = (*local, LEGACY, LEGACY_OLD)
    return tuple(dict.fromkeys(s for table in (*local, *theirs) for s in table))


def _even_rows(arch: Arch, rows: int, shard: Shard) -> Ranges:
    del arch
    if rows % shard.size:
        raise LayoutError(
            f"MLA down projection: {rows} rows % tp({shard.size}) = {rows % shard.size}, want 0 "
            "for the local implementation, which cuts them; transformer_engine does not"
        )
    each = rows // shard.size
    return ((shard.rank * each, (shard.rank + 1) * each),)


def _of_heads(sizes: Callable[[Mla], tuple[int, int]], which: int) -> Rows:
    """Part `which` of every head, whose rows are parts of `sizes`."""

    def rows(arch: Arch, count: int, shard: Shard) -> Ranges:
        del shard
        parts = sizes(_mla(arch))
        begin = sum(parts[:which])
        return tuple(
            (head + begin, head + begin + parts[which]) for head in range(0, count, sum(parts))
        )

    return rows


def _query_heads(mla: Mla) -> tuple[int, int]:
    return mla.qk_nope_head_dim, mla.qk_rope_head_dim


def _key_value_heads(mla: Mla) -> tuple[int, int]:
    return mla.qk_nope_head_dim, mla.v_head_dim


def _qkvz_rows(arch: Arch, count: int, shard: Shard) -> Ranges:
    """Key head by key head `[q k v … v z … z]`, of all q, k, v, z, b, a."""
    del count, shard
    gdn = _gdn(arch)
    key, wide = gdn.key_head_dim, gdn.value_heads // gdn.key_heads * gdn.value_head_dim
    all_keys, all_values = gdn.key_heads * key, gdn.key_heads * wide
    begins = (0, all_keys, 2 * all_keys, 2 * all_keys + all_values)
    return tuple(
        (begin + head * size, begin + (head + 1) * size)
        for head in range(gdn.key_heads)
        for begin, size in zip(begins, (key, key, wide, wide), strict=True)
    )


def _ba_rows(arch: Arch, count: int, shard: Shard) -> Ranges:
    """Key head by key head `[b … b a … a]`: the last `2 * value_heads` rows."""
    del shard
    gdn = _gdn(arch)
    each = gdn.value_heads // gdn.key_heads
    return tuple(
        (begin + head * each, begin + (head + 1) * each)
        for head in range(gdn.key_heads)
        for begin in (count - 2 * gdn.value_heads, count - gdn.value_heads)
    )


def _attention_rows(which: Literal["q", "k", "v"]) -> Rows:
    """All queries (each with its gate behind it, if gated), keys or values, of grouped rows."""

    def rows(arch: Arch, count: int, shard: Shard) -> Ranges:
        del shard
        attention = _attention(arch)
        dim, heads = attention.head_dim, attention.heads // attention.query_groups
        gates = heads if attention.output_gate else 0
        width = (heads + gates + 2) * dim
        first = {"k": [heads + gates], "v": [heads + gates + 1]}
        first["q"] = [i for head in range(heads) for i in (head, heads + head)[: 2 if gates else 1]]
        return tuple(
            (group + i * dim, group + (i + 1) * dim)
            for group in range(0, count, width)
            for i in first[which]
        )

    return rows


def _mla(arch: Arch) -> Mla:
    if arch.mla is None:
        raise ArchError("arch: a spelling of latent attention needs mla, found null")
    return arch.mla


def _gdn(arch: Arch) -> Gdn:
    if arch.gdn is None:
        raise ArchError("arch: a spelling of linear attention needs gdn, found null")
    return arch.gdn


def _attention(arch: Arch) -> Attention:
    if arch.attention is None:
        raise ArchError("arch: a spelling of attention needs attention, found null")
    return arch.attention


def _fused(linear: str, norm: str) -> Iterator[Spelling]:
    """A norm inside the linear that follows it."""
    for kind in ("weight", "bias"):
        yield Spelling(f"{linear}.layer_norm_{kind}", (f"{norm}.{kind}",), needs=f"{linear}.weight")


_AT = "self_attention."
_Q_DOWN, _KV_DOWN = _AT + "linear_q_down_proj", _AT + "linear_kv_down_proj"
_Q_UP, _KV_UP = _AT + "linear_q_up_proj.weight", _AT + "linear_kv_up_proj.weight"
_Q = _AT + "linear_q_proj.weight"
_INDEXER, _DSA = _AT + "core_attention.indexer.", _AT + "dsa_indexer."
_IN_PROJ, _QKV = _AT + "in_proj.weight", _AT + "linear_qkv.weight"

# megatron-core's local spec has no linear that is on every rank: it cuts the down projections
# (multi_latent_attention.py gathers what they give).
LOCAL_MLA: tuple[Spelling, ...] = tuple(
    Spelling(name, (name,), rows=_even_rows)
    for linear in (_Q_DOWN, _KV_DOWN)
    for name in (f"{linear}.weight", f"{linear}.bias")
)

# megatron/core/ssm: a MambaLayer has one norm, and a MambaStack runs every model that has such
# layers.
LOCAL_MAMBA: tuple[Spelling, ...] = tuple(
    Spelling(f"norm.{kind}", (f"input_layernorm.{kind}",), needs="mixer.in_proj.weight")
    for kind in ("weight", "bias")
)
MAMBA_STACK: tuple[Spelling, ...] = tuple(
    Spelling(f"decoder.final_norm.{kind}", (f"decoder.final_layernorm.{kind}",))
    for kind in ("weight", "bias")
)

FUSED_NORMS: tuple[Spelling, ...] = (
    *_fused(_AT + "linear_qkv", "input_layernorm"),
    *_fused(_AT + "in_proj", "input_layernorm"),
    *_fused("mixer.in_proj", "input_layernorm"),
    *_fused(_AT + "linear_q_up_proj", _AT + "q_layernorm"),
    *_fused(_AT + "linear_kv_up_proj", _AT + "kv_layernorm"),
    *_fused("mlp.linear_fc1", "pre_mlp_layernorm"),
)

MINDSPEED_FUSED_NORMS: tuple[Spelling, ...] = (
    *_fused(_AT + "linear_qkv", "input_layernorm"),
    *_fused("mlp.linear_fc1", "pre_mlp_layernorm"),
    Spelling(
        _AT + "linear_qkv.layer_norm_weight",
        ("input_layernorm.weight",),
        needs=f"{_KV_DOWN}.weight",
    ),
)

SPLIT_MLA: tuple[Spelling, ...] = (
    Spelling(_AT + "linear_qk_nope.weight", (_Q_UP,), rows=_of_heads(_query_heads, 0)),
    Spelling(_AT + "linear_qk_rope.weight", (_Q_UP,), rows=_of_heads(_query_heads, 1)),
    Spelling(_AT + "linear_kv_nope.weight", (_KV_UP,), rows=_of_heads(_key_value_heads, 0)),
    Spelling(_AT + "linear_v.weight", (_KV_UP,), rows=_of_heads(_key_value_heads, 1)),
)

MINDSPEED: tuple[Spelling, ...] = (
    *(
        Spelling(f"{_AT}linear_qkv.{kind}", (f"{_Q_DOWN}.{kind}", f"{_KV_DOWN}.{kind}"))
        for kind in ("weight", "bias")
    ),
    # Without a query latent the queries' own projection stands there, whole on every rank.
    Spelling(_QKV, (_Q, f"{_KV_DOWN}.weight"), is_whole=True),
    Spelling(_AT + "k_layernorm.weight", (_AT + "kv_layernorm.weight",)),
    *(
        Spelling(_DSA + theirs, (_INDEXER + ours,))
        for theirs, ours in (
            ("wq_b.weight", "linear_wq_b.weight"),
            ("wk.weight", "linear_wk.weight"),
            ("k_norm.weight", "k_norm.weight"),
            ("k_norm.bias", "k_norm.bias"),
            ("weights_proj.weight", "linear_weights_proj.weight"),
        )
    ),
    *(
        Spelling(f"post_attn_norm.{kind}", (f"post_self_attn_layernorm.{kind}",))
        for kind in ("weight", "bias")
    ),
    Spelling(_AT + "in_proj_qkvz.weight", (_IN_PROJ,), rows=_qkvz_rows, is_whole=True),
    Spelling(_AT + "in_proj_ba.weight", (_IN_PROJ,), rows=_ba_rows, is_whole=True),
    *(
        Spelling(f"{_AT}{theirs}", (f"{_AT}{ours}",), needs=_IN_PROJ, is_whole=True)
        for theirs, ours in (
            ("conv1d.weight", "conv1d.weight"),
            ("A_log", "A_log"),
            ("dt_bias", "dt_bias"),
            ("norm.weight", "out_norm.weight"),
            ("out_proj.weight", "out_proj.weight"),
        )
    ),
    *(
        Spelling(
            f"mtp.final_layernorms.{{m}}.{kind}", (f"mtp.layers.{{m}}.final_layernorm.{kind}",)
        )
        for kind in ("weight", "bias")
    ),
    *(
        Spelling(
            f"final_layernorm.{kind}",
            (f"decoder.final_layernorm.{kind}",),
            needs="mtp.layers.0.eh_proj.weight",
        )
        for kind in ("weight", "bias")
    ),
)

# Attention beside linear attention: MindSpeed-LLM leaves queries, keys and values apart.
MINDSPEED_APART: tuple[Spelling, ...] = (
    Spelling(_AT + "q_proj.weight", (_QKV,), rows=_attention_rows("q"), is_whole=True),
    Spelling(_AT + "k_proj.weight", (_QKV,), rows=_attention_rows("k"), is_whole=True),
    Spelling(_AT + "v_proj.weight", (_QKV,), rows=_attention_rows("v"), is_whole=True),
)

# Names of older releases, read and never written.
MINDSPEED_OLD: tuple[Spelling, ...] = (
    Spelling("mlp.shared_expert_gate.weight", ("mlp.shared_experts.gate_weight",)),
    Spelling(_AT + "linear_qb.weight", (_Q_UP,)),
    Spelling(_AT + "linear_kvb.weight", (_KV_UP,)),
)

# Megatron's legacy models; the nesting around these names is formats/legacy.py's.
LEGACY: tuple[Spelling, ...] = tuple(
    Spelling(f"{theirs}.{kind}", (f"{ours}.{kind}",))
    for theirs, ours in (
        ("input_norm", "input_layernorm"),
        (_AT + "query_key_value", _AT + "linear_qkv"),
        (_AT + "dense", _AT + "linear_proj"),
        ("post_attention_norm", "pre_mlp_layernorm"),
        ("mlp.dense_h_to_4h", "mlp.linear_fc1"),
        ("mlp.dense_4h_to_h", "mlp.linear_fc2"),
        ("decoder.final_norm", "decoder.final_layernorm"),
    )
    for kind in ("weight", "bias")
)

# Names of its older releases, read and never written.
LEGACY_OLD: tuple[Spelling, ...] = tuple(
    Spelling(f"post_attention_layernorm.{kind}", (f"pre_mlp_layernorm.{kind}",))
    for kind in ("weight", "bias")
)
