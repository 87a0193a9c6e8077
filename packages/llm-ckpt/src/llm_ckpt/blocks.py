"""Parameters of the parts of a layer: mixers, feed-forwards, norms; names relative to the layer."""

from collections.abc import Iterator
from dataclasses import dataclass

from llm_ckpt.arch import Arch, Attention, Gdn, LayerRun, Mamba2, Mla, Mlp, Moe
from llm_ckpt.layout import COLUMNS, GATED, ROWS, WHOLE, Cut, Shape


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter: full unpadded shape, and how ranks divide it.

    `is_cast` is False for what keeps its own precision when a checkpoint is cast.
    """

    name: str
    shape: Shape
    cut: Cut
    is_cast: bool = True


def norm(name: str, size: int, arch: Arch) -> list[Param]:
    """A norm over `size` channels that every rank holds."""
    weight = Param(f"{name}.weight", (size,), WHOLE)
    bias = Param(f"{name}.bias", (size,), WHOLE)
    return [weight, bias] if arch.norm.kind == "layer" else [weight]


def mixer(arch: Arch, run: LayerRun, *, layer: int) -> Iterator[Param]:
    """What mixes tokens in layer number `layer`."""
    if run.mixer == "attention" and arch.attention:
        owns_kv = layer % arch.attention.shared_kv == 0
        yield from _attention(arch.attention, arch.hidden_size, owns_kv=owns_kv)
    if run.mixer == "mla" and arch.mla:
        yield from _mla(arch.mla, arch.hidden_size, layer=layer)
    if run.mixer == "gdn" and arch.gdn:
        yield from _gdn(arch.gdn, arch.hidden_size)
    if run.mixer == "mamba2" and arch.mamba2:
        yield from _mamba2(arch.mamba2, arch.hidden_size)


def feed_forward(arch: Arch, run: LayerRun) -> Iterator[Param]:
    """What works on each token by itself."""
    if run.feed_forward in ("dense", "dense_shortcut_moe") and arch.mlp:
        yield from _mlp("mlp", arch.mlp, arch.hidden_size)
    if run.feed_forward == "moe" and arch.moe:
        yield from _moe("mlp", arch.moe, arch.hidden_size)
    if run.feed_forward == "dense_shortcut_moe" and arch.moe:
        yield from _moe("shortcut_moe", arch.moe, arch.hidden_size)


def _attention(attention: Attention, hidden: int, *, owns_kv: bool) -> Iterator[Param]:
    """A layer that borrows keys and values has `linear_q` in the place of `linear_qkv`.

    It borrows them as projected, and norms the keys by a weight of its own.
    """
    width, dim = attention.heads * attention.head_dim, attention.head_dim
    kv_width = attention.query_groups * dim
    rows = width * (2 if attention.output_gate else 1) + (2 * kv_width if owns_kv else 0)
    name = "linear_qkv" if owns_kv else "linear_q"
    yield from _linear(f"self_attention.{name}", (rows, hidden), ROWS, attention.qkv_bias)
    is_full, sizes = attention.qk_norm == "full", {"q": width, "k": kv_width}
    if attention.qk_norm != "none":
        for part in "qk":
            size, how = (sizes[part], ROWS) if is_full else (dim, WHOLE)
            yield Param(f"self_attention.{part}_layernorm.weight", (size,), how)
    if attention.sinks:
        yield Param("self_attention.core_attention.softmax_offset", (attention.heads,), ROWS)
    yield from _linear("self_attention.linear_proj", (hidden, width), COLUMNS, attention.out_bias)


def _mla(mla: Mla, hidden: int, *, layer: int) -> Iterator[Param]:
    q_rows = mla.heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    at = "self_attention."
    if mla.q_lora_rank is None:
        yield Param(at + "linear_q_proj.weight", (q_rows, hidden), ROWS)
    else:
        rank = mla.q_lora_rank
        yield from _linear(at + "linear_q_down_proj", (rank, hidden), WHOLE, mla.down_bias)
        yield Param(at + "q_layernorm.weight", (rank,), WHOLE)
        yield Param(at + "linear_q_up_proj.weight", (q_rows, rank), ROWS)
    down = (mla.kv_lora_rank + mla.qk_rope_head_dim, hidden)
    yield from _linear(at + "linear_kv_down_proj", down, WHOLE, mla.down_bias)
    yield Param(at + "kv_layernorm.weight", (mla.kv_lora_rank,), WHOLE)
    kv_rows = mla.heads * (mla.qk_nope_head_dim + mla.v_head_dim)
    yield Param(at + "linear_kv_up_proj.weight", (kv_rows, mla.kv_lora_rank), ROWS)
    if mla.indexer is not None and layer not in mla.indexer.borrowing_layers:
        at_indexer, indexer = at + "core_attention.indexer.", mla.indexer
        rank, dim = mla.q_lora_rank or hidden, indexer.head_dim
        yield Param(at_indexer + "linear_wq_b.weight", (indexer.heads * dim, rank), WHOLE)
        yield Param(at_indexer + "linear_wk.weight", (dim, hidden), WHOLE)
        yield Param(at_indexer + "k_norm.weight", (dim,), WHOLE)
        yield Param(at_indexer + "k_norm.bias", (dim,), WHOLE)
        yield Param(at_indexer + "linear_weights_proj.weight", (indexer.heads, hidden), WHOLE)
    width = mla.heads * mla.v_head_dim
    yield from _linear(at + "linear_proj", (hidden, width), COLUMNS, mla.out_bias)


def _gdn(gdn: Gdn, hidden: int) -> Iterator[Param]:
    """Rows of `in_proj`: query, key, value, z, beta, alpha (megatron-core's gated_delta_net.py)."""
    key, value = gdn.key_heads * gdn.key_head_dim, gdn.value_heads * gdn.value_head_dim
    sections = (key, key, value, value, gdn.value_heads, gdn.value_heads)
    at, qkv = "self_attention.", (key, key, value)
    yield Param(at + "in_proj.weight", (sum(sections), hidden), Cut(0, sections))
    yield Param(at + "conv1d.weight", (sum(qkv), 1, gdn.conv_kernel), Cut(0, qkv))
    yield Param(at + "dt_bias", (gdn.value_heads,), ROWS, is_cast=False)
    yield Param(at + "A_log", (gdn.value_heads,), ROWS, is_cast=False)
    yield Param(at + "out_norm.weight", (gdn.value_head_dim,), WHOLE)
    yield Param(at + "out_proj.weight", (hidden, value), COLUMNS)


def _mamba2(mamba: Mamba2, hidden: int) -> Iterator[Param]:
    """Rows of `in_proj`: z, x, B, C, dt (megatron/core/ssm/mamba_mixer.py)."""
    inner, states = mamba.heads * mamba.head_dim, mamba.groups * mamba.state_dim
    sections, convolved = (inner, inner, states, states, mamba.heads), (inner, states, states)
    rows, cut = sum(sections), Cut(0, sections)
    yield from _linear("mixer.in_proj", (rows, hidden), cut, mamba.proj_bias)
    conv = (sum(convolved), 1, mamba.conv_kernel)
    yield from _linear("mixer.conv1d", conv, Cut(0, convolved), mamba.conv_bias)
    for name in ("dt_bias", "A_log", "D"):
        yield Param(f"mixer.{name}", (mamba.heads,), ROWS, is_cast=False)
    if mamba.gated_norm:
        yield Param("mixer.norm.weight", (inner,), ROWS)
    yield from _linear("mixer.out_proj", (hidden, inner), COLUMNS, mamba.proj_bias)


def _mlp(at: str, mlp: Mlp | Moe, hidden: int) -> Iterator[Param]:
    yield from _gated(at, hidden, mlp.ffn_hidden_size, gated=mlp.gated, bias=mlp.bias)


def _moe(at: str, moe: Moe, hidden: int) -> Iterator[Param]:
    choices = moe.experts + moe.router.zero_experts
    yield from _linear(f"{at}.router", (choices, hidden), WHOLE, moe.router.linear_bias)
    if moe.router.bias:
        yield Param(f"{at}.router.expert_bias", (choices,), WHOLE, is_cast=False)
    for expert in range(moe.experts):
        yield from _mlp(f"{at}.experts.local_experts.{expert}", moe, hidden)
    if moe.shared is not None:
        size, shared = moe.shared.ffn_hidden_size, f"{at}.shared_experts"
        yield from _gated(shared, hidden, size, gated=moe.gated, bias=moe.bias)
        if moe.shared.gated:
            yield Param(f"{shared}.gate_weight", (1, hidden), WHOLE)


def _gated(at: str, hidden: int, size: int, *, gated: bool, bias: bool) -> Iterator[Param]:
    rows, how = (2 * size, GATED) if gated else (size, ROWS)
    yield from _linear(f"{at}.linear_fc1", (rows, hidden), how, bias)
    yield from _linear(f"{at}.linear_fc2", (hidden, size), COLUMNS, bias)


def _linear(at: str, shape: Shape, how: Cut, bias: bool) -> Iterator[Param]:
    """A linear layer; its bias goes with its rows, so a row-parallel one's is held whole."""
    yield Param(f"{at}.weight", shape, how)
    if bias:
        yield Param(f"{at}.bias", shape[:1], how if how.axis == 0 else WHOLE)
