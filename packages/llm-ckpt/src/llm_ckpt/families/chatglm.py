"""ChatGLM2/3-6B and GLM-4-9B (`chatglm`, the authors' modeling_chatglm.py).

Rotary positions turn adjacent pairs of the first half of each head, with base 10000 · rope_ratio
(ChatGLM3, GLM-4). ChatGLM2-6B-32K divides positions by rope_ratio instead under the same key; such
a config.json is refused where `_name_or_path` gives it away. apply_query_key_layer_scaling divides
scores and multiplies them back.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from llm_ckpt.arch import Arch, Rope
from llm_ckpt.errors import ArchError
from llm_ckpt.families import dense, remote
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Facts, Field, Fixed, Ignored, Json, UniformLayers
from llm_ckpt.params import EMBEDDING, FINAL_NORM, LAYER, OUTPUT
from llm_ckpt.rules import PackedQkv, Same

HF = "transformer.encoder.layers.{i}."
BASE = 10000.0


@dataclass(frozen=True, slots=True)
class _RopeRatio:
    keys: tuple[str, ...] = ("rope_ratio",)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        ratio = config.get("rope_ratio") or 1
        if ratio != 1 and "chatglm2" in str(config.get("_name_or_path")).lower():
            raise ArchError(
                f"{where}: rope_ratio={ratio!r} of ChatGLM2 divides positions and cannot be "
                "converted; ChatGLM3's and GLM-4's multiplies the base"
            )
        return remote.rope_facts(BASE * ratio, fraction=0.5, interleaved=True)

    def write(self, arch: Arch) -> dict[str, Json]:
        base = arch.position.base if isinstance(arch.position, Rope) else BASE
        ratio = base / BASE
        return {"rope_ratio": int(ratio) if ratio.is_integer() else ratio}


@dataclass(frozen=True, slots=True)
class _QueryGroups:
    keys: tuple[str, ...] = ("multi_query_attention", "multi_query_group_num")

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        del where
        is_grouped = config.get("multi_query_attention", False)
        groups = config.get("multi_query_group_num", 1) if is_grouped else dense.all_heads(config)
        return {"attention.query_groups": groups}

    def write(self, arch: Arch) -> dict[str, Json]:
        groups = arch.attention.query_groups if arch.attention else None
        return {"multi_query_attention": True, "multi_query_group_num": groups}


FAMILY = Family(
    name="chatglm",
    architecture="ChatGLMForConditionalGeneration",
    fields=(
        Field("padded_vocab_size", ("vocab_size",)),
        Field("hidden_size", ("hidden_size",)),
        Field("ffn_hidden_size", ("mlp.ffn_hidden_size",)),
        UniformLayers("num_layers"),
        Field("num_attention_heads", ("attention.heads",)),
        Field("kv_channels", ("attention.head_dim",)),
        _QueryGroups(),
        Field("seq_length", ("max_position_embeddings",)),
        Field("layernorm_epsilon", ("norm.eps",), default=1e-5, kind=float),
        Field("add_qkv_bias", ("attention.qkv_bias",), default=False),
        Field("tie_word_embeddings", ("tie_embeddings",), default=False),
        _RopeRatio(),
        Fixed("add_bias_linear", (False,)),
        Fixed("rmsnorm", (True,)),
        Fixed("post_layer_norm", (True,)),
        Fixed("apply_residual_connection_post_layernorm", (False,)),
        Fixed("original_rope", (True,)),
        Fixed("quantization_bit", (0,)),
        Fixed("pre_seq_len", (None,)),
        Ignored(
            (
                "vocab_size",  # the tokenizer's; the embedding has padded_vocab_size rows
                "num_hidden_layers",  # repeats num_layers
                "apply_query_key_layer_scaling",
                "attention_softmax_in_fp32",
                "bias_dropout_fusion",
                "classifier_dropout",
                "fp32_residual_connection",
                "hidden_dropout",
                "prefix_projection",
            )
        ),
        remote.RUNTIME,
    ),
    constants={**dense.CONSTANTS, "mlp.activation": "silu"},
    rules=(
        Same(EMBEDDING, "transformer.embedding.word_embeddings.weight"),
        Same(FINAL_NORM, "transformer.encoder.final_layernorm.weight"),
        Same(OUTPUT, "transformer.output_layer.weight"),
        Same(LAYER + "input_layernorm.weight", HF + "input_layernorm.weight"),
        Same(LAYER + "pre_mlp_layernorm.weight", HF + "post_attention_layernorm.weight"),
        *(
            PackedQkv(
                LAYER + f"self_attention.linear_qkv.{kind}",
                HF + f"self_attention.query_key_value.{kind}",
            )
            for kind in ("weight", "bias")
        ),
        Same(LAYER + "self_attention.linear_proj.weight", HF + "self_attention.dense.weight"),
        Same(LAYER + "mlp.linear_fc1.weight", HF + "mlp.dense_h_to_4h.weight"),
        Same(LAYER + "mlp.linear_fc2.weight", HF + "mlp.dense_4h_to_h.weight"),
    ),
    copies={
        "transformer.output_layer.weight": "transformer.embedding.word_embeddings.weight",
    },
    buffers=(r"transformer\.rotary_pos_emb\.inv_freq",),
)
