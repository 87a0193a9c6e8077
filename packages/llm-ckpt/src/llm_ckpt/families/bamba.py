"""Bamba (transformers' `bamba`): Mamba2 or attention, each followed by a dense feed-forward.

Its layers of two blocks are two layers of one block each here, as megatron-core's MambaStack has
them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from llm_ckpt.arch import Arch
from llm_ckpt.errors import ArchError
from llm_ckpt.families import dense, mamba2
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Codec, Facts, Field, Fixed, Ignored, Json
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.params import FINAL_NORM, LAYER
from llm_ckpt.rules import Glu, Qkv, Rule, Same

HF = "model.layers.{h}."


@dataclass(frozen=True, slots=True)
class PairedLayers:
    """`num_hidden_layers` pairs; those of `attn_layer_indices` have attention, others Mamba2."""

    keys: tuple[str, ...] = ("num_hidden_layers", "attn_layer_indices")

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """Two runs a pair; only attention has a position signal."""
        if not isinstance(count := config.get("num_hidden_layers"), int):
            raise ArchError(f"{where}: missing key num_hidden_layers")
        with_attention = cast("list[int]", config.get("attn_layer_indices") or [])
        feed = {"count": 1, "mixer": "none", "feed_forward": "dense", "window": None, "rope": False}
        runs: list[Json] = []
        for layer in range(count):
            has_attention = layer in with_attention
            mixer = {"mixer": "attention" if has_attention else "mamba2", "rope": has_attention}
            runs += [{**feed, "feed_forward": "none", **mixer}, feed]
        return {"layers": runs}

    def write(self, arch: Arch) -> dict[str, Json]:
        """The number of pairs, and those with attention."""
        mixers = [run.mixer for run in arch.each_layer()][::2]
        with_attention = [layer for layer, mixer in enumerate(mixers) if mixer == "attention"]
        return {"num_hidden_layers": len(mixers), "attn_layer_indices": with_attention}


@dataclass(frozen=True, slots=True)
class HeadSize:
    """`mamba_d_head`, or `auto`: the inner width divided among the heads."""

    keys: tuple[str, ...] = ("mamba_d_head",)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """The size of a Mamba2 head."""
        del where
        size = config.get("mamba_d_head", "auto")
        inner = config.get("mamba_expand", 2) * config["hidden_size"]
        return {"mamba2.head_dim": inner // config["mamba_n_heads"] if size == "auto" else size}

    def write(self, arch: Arch) -> dict[str, Json]:
        """The size."""
        return {"mamba_d_head": arch.mamba2.head_dim} if arch.mamba2 else {}


MIXER: tuple[Codec, ...] = (
    Field("mamba_n_heads", ("mamba2.heads",)),
    HeadSize(),
    Field("mamba_n_groups", ("mamba2.groups",), default=1),
    Field("mamba_d_state", ("mamba2.state_dim",), default=256),
    Field("mamba_d_conv", ("mamba2.conv_kernel",), default=4),
    Field("mamba_chunk_size", ("mamba2.chunk",), default=256),
    Field("mamba_conv_bias", ("mamba2.conv_bias",), default=True),
    Field("mamba_proj_bias", ("mamba2.proj_bias",), default=False),
    mamba2.Expand("mamba_expand", heads="mamba_n_heads", head_dim="mamba_d_head"),
    Fixed("time_step_limit", mamba2.NO_LIMIT),
)


def _both(kind: str) -> tuple[Rule, ...]:
    """Rules of the weights or the biases of attention and of a feed-forward."""
    at, hf = LAYER + "self_attention.", HF + "self_attn."
    return (
        Qkv(
            f"{at}linear_qkv.{kind}",
            q=f"{hf}q_proj.{kind}",
            k=f"{hf}k_proj.{kind}",
            v=f"{hf}v_proj.{kind}",
        ),
        Same(f"{at}linear_proj.{kind}", f"{hf}o_proj.{kind}"),
        Glu(
            f"{LAYER}mlp.linear_fc1.{kind}",
            gate=f"{HF}feed_forward.gate_proj.{kind}",
            up=f"{HF}feed_forward.up_proj.{kind}",
        ),
        Same(f"{LAYER}mlp.linear_fc2.{kind}", f"{HF}feed_forward.down_proj.{kind}"),
    )


FAMILY = Family(
    name="bamba",
    architecture="BambaForCausalLM",
    fields=(
        *dense.sizes(Field("rms_norm_eps", ("norm.eps",), default=1e-5, kind=float)),
        PairedLayers(),
        RopeFields(fraction=0.5),
        dense.kv_heads(8),
        dense.head_dim(),
        Field("mlp_bias", ("mlp.bias",), default=False),
        *MIXER,
        Ignored(("num_logits_to_keep", "z_loss_coefficient", "use_mamba_kernels")),
    ),
    constants={**dense.CONSTANTS, "mamba2.gated_norm": True},
    rules=(
        *(rule for rule in dense.ENDS if rule.mcore != FINAL_NORM),
        Same(FINAL_NORM, "model.final_layernorm.weight"),
        Same(LAYER + "input_layernorm.weight", HF + "input_layernorm.weight"),
        Same(LAYER + "pre_mlp_layernorm.weight", HF + "pre_ff_layernorm.weight"),
        *mamba2.mixer(HF + "mamba."),
        *_both("weight"),
        *_both("bias"),
    ),
    copies=dense.COPIES,
)
