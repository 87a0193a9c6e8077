"""Qwen 1 (`qwen`, the authors' modeling_qwen.py).

`intermediate_size` counts both halves of the feed-forward, and its `w2` is the gate.
use_dynamic_ntk (a larger rotary base) and use_logn_attn (longer queries) act on sequences beyond
`seq_length` only, in ways arch.json cannot say: with either on, arch.json is the model up to
`seq_length` tokens, its max_position_embeddings, and a config.json written from it has both off.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from llm_ckpt.arch import Arch
from llm_ckpt.errors import ArchError
from llm_ckpt.families import dense, remote
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Facts, Field, Fixed, Ignored, Json, UniformLayers
from llm_ckpt.params import EMBEDDING, FINAL_NORM, LAYER, OUTPUT
from llm_ckpt.rules import Glu, PackedQkv, Same

HF = "transformer.h.{i}."


@dataclass(frozen=True, slots=True)
class _Length:
    keys: tuple[str, ...] = (
        "seq_length",
        "max_position_embeddings",
        "use_dynamic_ntk",
        "use_logn_attn",
    )

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        del where
        is_stretched = config.get("use_dynamic_ntk", True) or config.get("use_logn_attn", True)
        trained = config.get("seq_length", 8192)
        longest = config.get("max_position_embeddings") or trained
        return {"max_position_embeddings": trained if is_stretched else longest}

    def write(self, arch: Arch) -> dict[str, Json]:
        length = arch.max_position_embeddings
        return dict(zip(self.keys, (length, length, False, False), strict=True))


@dataclass(frozen=True, slots=True)
class _BothHalves:
    keys: tuple[str, ...] = ("intermediate_size",)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        size = config.get("intermediate_size")
        if not isinstance(size, int) or size % 2:
            raise ArchError(f"{where}: intermediate_size={size!r}, want an even number")
        return {"mlp.ffn_hidden_size": size // 2}

    def write(self, arch: Arch) -> dict[str, Json]:
        return {"intermediate_size": 2 * arch.mlp.ffn_hidden_size if arch.mlp else None}


FAMILY = Family(
    name="qwen",
    architecture="QWenLMHeadModel",
    fields=(
        Field("vocab_size", ("vocab_size",)),
        Field("hidden_size", ("hidden_size",)),
        _BothHalves(),
        UniformLayers(),
        Field("num_attention_heads", ("attention.heads", "attention.query_groups")),
        Field("kv_channels", ("attention.head_dim",), default=128),
        Field("layer_norm_epsilon", ("norm.eps",), default=1e-6, kind=float),
        Field("tie_word_embeddings", ("tie_embeddings",), default=False),
        remote.PlainRope(),
        Field("rotary_emb_base", ("position.base",), default=10000.0, kind=float),
        Field("rotary_pct", ("position.fraction",), default=1.0, kind=float),
        _Length(),
        Fixed("no_bias", (True,)),
        Fixed("scale_attn_weights", (True,)),
        Ignored(
            (
                "attn_dropout_prob",
                "emb_dropout_prob",
                "onnx_safe",
                "rope_theta",  # repeats rotary_emb_base for other engines
                "softmax_in_fp32",
                "use_cache_kernel",
                "use_cache_quantization",
                "use_flash_attn",
            )
        ),
        remote.RUNTIME,
    ),
    constants={**dense.CONSTANTS, "mlp.activation": "silu", "attention.qkv_bias": True},
    rules=(
        Same(EMBEDDING, "transformer.wte.weight"),
        Same(FINAL_NORM, "transformer.ln_f.weight"),
        Same(OUTPUT, "lm_head.weight"),
        Same(LAYER + "input_layernorm.weight", HF + "ln_1.weight"),
        Same(LAYER + "pre_mlp_layernorm.weight", HF + "ln_2.weight"),
        *(
            PackedQkv(LAYER + f"self_attention.linear_qkv.{kind}", HF + f"attn.c_attn.{kind}")
            for kind in ("weight", "bias")
        ),
        Same(LAYER + "self_attention.linear_proj.weight", HF + "attn.c_proj.weight"),
        Glu(
            LAYER + "mlp.linear_fc1.weight",
            gate=HF + "mlp.w2.weight",
            up=HF + "mlp.w1.weight",
        ),
        Same(LAYER + "mlp.linear_fc2.weight", HF + "mlp.c_proj.weight"),
    ),
    copies={"lm_head.weight": "transformer.wte.weight"},
    buffers=(r"transformer\.rotary_emb\.inv_freq",),
)
