"""The parameters an architecture has in megatron-core: canonical name, shape, tensor-parallel cut.

Canonical names are those of megatron-core's local layer spec, layers and experts counted globally.
They are what a `WeightSource` speaks; every reader and writer translates at its own border.
"""

from collections.abc import Iterator
from dataclasses import replace

from llm_ckpt.arch import Arch, LayerRun
from llm_ckpt.blocks import Param, feed_forward, mixer, norm
from llm_ckpt.layout import ROWS, VOCAB, WHOLE

EMBEDDING = "embedding.word_embeddings.weight"
POSITIONS = "embedding.position_embeddings.weight"
OUTPUT = "output_layer.weight"
OUTPUT_BIAS = "output_layer.bias"
FINAL_NORM = "decoder.final_layernorm.weight"
LAYER = "decoder.layers.{i}."
EXPERT = "mlp.experts.local_experts.{e}."
MTP = "mtp.layers.{m}."
MTP_LAYER = MTP + "transformer_layer."


def expected_params(arch: Arch) -> tuple[Param, ...]:
    """Every parameter of `arch`, in the order a model runs them."""
    hidden, vocab = arch.hidden_size, arch.vocab_size
    params = [Param(EMBEDDING, (vocab, hidden), VOCAB)]
    if arch.position.kind == "learned":
        params.append(Param(POSITIONS, (arch.max_position_embeddings, hidden), WHOLE))
    if arch.embedding_norm:
        params += norm("embedding.norm", hidden, arch)
    for index, run in enumerate(arch.each_layer()):
        params += _prefixed(LAYER.format(i=index), _layer(arch, run, index))
    params += norm("decoder.final_layernorm", hidden, arch)
    if not arch.tie_embeddings:
        params.append(Param(OUTPUT, (vocab, hidden), VOCAB))
    if arch.output_bias:
        params.append(Param(OUTPUT_BIAS, (vocab,), VOCAB))
    for index in range(arch.mtp.layers if arch.mtp else 0):
        params += _prefixed(MTP.format(m=index), _mtp_layer(arch))
    return tuple(params)


def _prefixed(prefix: str, params: Iterator[Param]) -> Iterator[Param]:
    return (replace(param, name=prefix + param.name) for param in params)


def _layer(arch: Arch, run: LayerRun, index: int) -> Iterator[Param]:
    is_pre, is_post = arch.norm.placement != "post", arch.norm.placement != "pre"
    if run.mixer != "none":
        if is_pre:
            yield from norm("input_layernorm", arch.hidden_size, arch)
        yield from mixer(arch, run, layer=index)
        if is_post:
            yield from norm("post_self_attn_layernorm", arch.hidden_size, arch)
    if run.feed_forward != "none":
        if is_pre:
            yield from norm("pre_mlp_layernorm", arch.hidden_size, arch)
        yield from feed_forward(arch, run)
        if is_post:
            yield from norm("post_mlp_layernorm", arch.hidden_size, arch)


def _mtp_layer(arch: Arch) -> Iterator[Param]:
    """A prediction layer (DeepSeek-V3, arXiv 2412.19437 §2.2): a layer of the last kind."""
    hidden = arch.hidden_size
    yield from norm("enorm", hidden, arch)
    yield from norm("hnorm", hidden, arch)
    yield Param("eh_proj.weight", (hidden, 2 * hidden), ROWS)
    yield from _prefixed("transformer_layer.", _layer(arch, arch.layers[-1], 0))
    yield from norm("final_layernorm", hidden, arch)
