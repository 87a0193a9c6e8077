"""The parameters an architecture has in megatron-core: canonical name, shape, tensor-parallel cut.

Canonical names are those of megatron-core's local layer spec with global layer numbers. They are
what a `WeightSource` speaks; every reader and writer translates at its own border.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from llm_ckpt.arch import Arch, Attention, LayerRun, Mlp
from llm_ckpt.errors import ArchError
from llm_ckpt.layout import Cut, Shape

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
OUTPUT_BIAS = "output_layer.bias"
FINAL_NORM = "decoder.final_layernorm.weight"
LAYER = "decoder.layers.{i}."


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter: full unpadded shape, and how ranks divide it."""

    name: str
    shape: Shape
    cut: Cut


def expected_params(arch: Arch) -> tuple[Param, ...]:
    """Every parameter of `arch`, in the order a model runs them."""
    _refuse_unsupported(arch)
    hidden, vocab = arch.hidden_size, arch.vocab_size
    params = [Param(EMBEDDING, (vocab, hidden), Cut.VOCAB)]
    for index, run in enumerate(arch.each_layer()):
        prefix = LAYER.format(i=index)
        params += [Param(prefix + p.name, p.shape, p.cut) for p in _layer(arch, run)]
    params += _norm("decoder.final_layernorm", hidden, arch)
    if not arch.tie_embeddings:
        params.append(Param(OUTPUT, (vocab, hidden), Cut.VOCAB))
    if arch.output_bias:
        params.append(Param(OUTPUT_BIAS, (vocab,), Cut.VOCAB))
    return tuple(params)


def _layer(arch: Arch, run: LayerRun) -> Iterator[Param]:
    if run.mixer == "attention" and arch.attention:
        yield from _norm("input_layernorm", arch.hidden_size, arch)
        yield from _attention(arch.attention, arch.hidden_size)
    if run.feed_forward == "dense" and arch.mlp:
        yield from _norm("pre_mlp_layernorm", arch.hidden_size, arch)
        yield from _mlp(arch.mlp, arch.hidden_size)


def _attention(attention: Attention, hidden: int) -> Iterator[Param]:
    rows = (attention.heads + 2 * attention.query_groups) * attention.head_dim
    width = attention.heads * attention.head_dim
    yield Param("self_attention.linear_qkv.weight", (rows, hidden), Cut.ROWS)
    if attention.qkv_bias:
        yield Param("self_attention.linear_qkv.bias", (rows,), Cut.ROWS)
    if attention.qk_norm == "head":
        for name in ("q_layernorm", "k_layernorm"):
            yield Param(f"self_attention.{name}.weight", (attention.head_dim,), Cut.WHOLE)
    yield Param("self_attention.linear_proj.weight", (hidden, width), Cut.COLUMNS)
    if attention.out_bias:
        yield Param("self_attention.linear_proj.bias", (hidden,), Cut.WHOLE)


def _mlp(mlp: Mlp, hidden: int) -> Iterator[Param]:
    rows = mlp.ffn_hidden_size * (2 if mlp.gated else 1)
    how = Cut.GATED if mlp.gated else Cut.ROWS
    yield Param("mlp.linear_fc1.weight", (rows, hidden), how)
    if mlp.bias:
        yield Param("mlp.linear_fc1.bias", (rows,), how)
    yield Param("mlp.linear_fc2.weight", (hidden, mlp.ffn_hidden_size), Cut.COLUMNS)
    if mlp.bias:
        yield Param("mlp.linear_fc2.bias", (hidden,), Cut.WHOLE)


def _norm(name: str, size: int, arch: Arch) -> list[Param]:
    weight = Param(f"{name}.weight", (size,), Cut.WHOLE)
    bias = Param(f"{name}.bias", (size,), Cut.WHOLE)
    return [weight, bias] if arch.norm.kind == "layer" else [weight]


def _refuse_unsupported(arch: Arch) -> None:
    attention = arch.attention
    facts = {
        f"mixer {run.mixer}": run.mixer not in ("attention", "none") for run in arch.layers
    } | {
        "moe": arch.moe is not None,
        "mtp": arch.mtp is not None,
        f"norm.placement {arch.norm.placement}": arch.norm.placement != "pre",
        "position learned": arch.position.kind == "learned",
        "attention.sinks": attention is not None and attention.sinks,
        "attention.output_gate": attention is not None and attention.output_gate,
        "attention.qk_norm full": attention is not None and attention.qk_norm == "full",
        "attention.shared_kv": attention is not None and attention.shared_kv != 1,
    }
    if found := [name for name, is_used in facts.items() if is_used]:
        raise ArchError(f"arch: this version of llm-ckpt does not convert {', '.join(found)}")
