"""Baichuan 1 and 2, 7B and 13B (`baichuan`, the authors' modeling_baichuan.py).

One model_type for four models. In the published config.json files the rotary 7B have
`max_position_embeddings` and the ALiBi 13B have `model_max_length` alone; both generations of the
13B have 40 layers of 5120. Baichuan 2 has `z_loss_weight`, and rows of length 1 in its head
(vLLM and TensorRT-LLM tell sizes by hidden_size or heads, generations by vocab_size 125696).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from llm_ckpt.arch import Arch
from llm_ckpt.errors import ArchError
from llm_ckpt.families import dense, remote
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Facts, Field, Json, UniformLayers
from llm_ckpt.params import LAYER
from llm_ckpt.rules import PackedQkv

HIDDEN_SIZE_13B = 5120
VOCAB_SIZE_2 = 125696


@dataclass(frozen=True, slots=True)
class _Positions:
    keys: tuple[str, ...] = ("max_position_embeddings", "model_max_length")

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        length = config.get("max_position_embeddings")
        if length is None:
            length = config.get("model_max_length")
            return {"max_position_embeddings": length, "position.kind": "alibi"}
        if config.get("hidden_size") == HIDDEN_SIZE_13B:
            raise ArchError(
                f"{where}: max_position_embeddings={length!r} says rope (7B), hidden_size="
                f"{HIDDEN_SIZE_13B} says ALiBi (13B); the published 13B has model_max_length alone"
            )
        return {"max_position_embeddings": length, **remote.rope_facts(10000.0)}

    def write(self, arch: Arch) -> dict[str, Json]:
        length = arch.max_position_embeddings
        both = {"max_position_embeddings": length} if arch.position.kind == "rope" else {}
        return {**both, "model_max_length": length}


@dataclass(frozen=True, slots=True)
class _Generation:
    keys: tuple[str, ...] = ("z_loss_weight",)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        del where
        is_second = "z_loss_weight" in config or config.get("vocab_size") == VOCAB_SIZE_2
        return {"output_normalized": is_second}

    def write(self, arch: Arch) -> dict[str, Json]:
        return {"z_loss_weight": 0} if arch.output_normalized else {}


FAMILY = Family(
    name="baichuan",
    architecture="BaichuanForCausalLM",
    fields=(
        *dense.sizes(
            Field("num_attention_heads", ("attention.heads", "attention.query_groups")),
            without=("attention_bias", "max_position_embeddings"),
        ),
        UniformLayers(),
        dense.DIVIDED_HEAD_DIM,
        _Positions(),
        _Generation(),
        remote.RUNTIME,
    ),
    constants=dense.CONSTANTS,
    rules=(
        *dense.ENDS,
        *dense.NORMS,
        PackedQkv(LAYER + "self_attention.linear_qkv.weight", dense.HF + "self_attn.W_pack.weight"),
        dense.proj("weight"),
        *dense.MLP_WEIGHTS,
    ),
    copies=dense.COPIES,
    buffers=remote.BUFFERS,
)
