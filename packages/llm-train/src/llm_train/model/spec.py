"""Layer specs for megatron-core, built from `arch.json` with our own modules and no patching."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import cast

from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import get_mlp_module_spec_for_backend
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.moe_layer import MoESubmodules
from megatron.core.transformer.multi_token_prediction import MultiTokenPredictionBlockSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from llm_train.arch import Arch, LayerRun, Rope
from llm_train.arch import Attention as AttentionFacts
from llm_train.handover import ALONE, SHORTCUT, Handover, handovers
from llm_train.model.attention import Attention
from llm_train.model.core_attention import CoreAttention
from llm_train.model.experts import Experts
from llm_train.model.feed_forward import FeedForward
from llm_train.model.gdn import GatedDeltaNet
from llm_train.model.latent import LatentAttention, LatentOptions
from llm_train.model.layer import Layer, LayerSubmodules
from llm_train.model.linears import ColumnLinear, RowLinear
from llm_train.model.mamba import MambaMixer
from llm_train.model.mixture import Mixture
from llm_train.model.mtp import PredictionLayer
from llm_train.model.norms import AllHeadsNorm, LateHeadNorm, Norm
from llm_train.model.router import Router
from llm_train.model.zero_experts import ZeroExpertMixture

# Transformer Engine fuses the norms into the linears that follow them; checkpoints carry its names.
MIXER_NORM_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "attention": "self_attention.linear_qkv.layer_norm_",
        "mla": "self_attention.linear_qkv.layer_norm_",
        "gdn": "self_attention.in_proj.layer_norm_",
        "mamba2": "mixer.in_proj.layer_norm_",
    }
)
FEED_FORWARD_NORM_NAMES: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("dense", SHORTCUT), "mlp.linear_fc1.layer_norm_")
)
# layers.mixer → what megatron-core calls it in a layer, where it is not self_attention.
MIXER_NAMES: Mapping[str, str] = MappingProxyType({"mamba2": "mixer"})


class Provider(LocalSpecProvider):
    """megatron-core's local modules, with our norms."""

    def layer_norm(self, rms_norm: bool = False, for_qk: bool = False) -> type:
        return Norm


def block_spec(
    arch: Arch, config: TransformerConfig, *, vp_stage: int | None
) -> TransformerBlockSubmodules:
    """The layers of this rank's stage (and of chunk `vp_stage`), and the final norm."""
    layers = list(zip(arch.each_layer(), handovers(arch), strict=True))
    first = get_transformer_layer_offset(config, vp_stage=vp_stage)
    mine = layers[first : first + get_num_layers_to_build(config, vp_stage=vp_stage)]
    return TransformerBlockSubmodules(
        layer_specs=[_layer_spec(arch, layer, handover) for layer, handover in mine],
        layer_norm=Norm,  # pyright: ignore[reportArgumentType]  # a class by shape
    )


def prediction_spec(arch: Arch) -> MultiTokenPredictionBlockSubmodules | None:
    """The prediction layers, each with a layer of the last kind."""
    if arch.mtp is None:
        return None
    layer = _layer_spec(arch, arch.layers[-1], ALONE)
    spec = ModuleSpec(module=PredictionLayer, params={"transformer_layer": layer})
    return MultiTokenPredictionBlockSubmodules(layer_specs=[spec] * arch.mtp.layers)


def _layer_spec(arch: Arch, layer: LayerRun, handover: Handover) -> ModuleSpec:
    before_mixer, after_mixer = _norms(arch, is_block=layer.mixer != "none")
    before_mlp, after_mlp = _norms(arch, is_block=layer.feed_forward != "none")
    return ModuleSpec(
        module=Layer,
        params={
            "residual_scale": arch.scalars.residual,
            "mixer_name": MIXER_NAMES.get(layer.mixer, "self_attention"),
            "handover": handover,
        },
        submodules=LayerSubmodules(
            input_layernorm=before_mixer,
            self_attention=MIXERS[layer.mixer](arch, layer, handover),
            post_self_attn_layernorm=after_mixer,
            pre_mlp_layernorm=before_mlp,
            mlp=_feed_forward_spec(arch, layer.feed_forward),
            post_mlp_layernorm=after_mlp,
            shortcut_moe=_moe_spec(arch) if layer.feed_forward == SHORTCUT else IdentityOp,
            sharded_state_dict_keys_map=_checkpoint_names(layer, handover),
        ),
    )


def _norms(arch: Arch, *, is_block: bool) -> tuple[type, type]:
    """The norms before and after a block, if there is one."""
    is_pre, is_post = arch.norm.placement != "post", arch.norm.placement != "pre"
    before, after = (Norm if is_block and wanted else IdentityOp for wanted in (is_pre, is_post))
    return before, after


def _checkpoint_names(layer: LayerRun, handover: Handover) -> dict[str, str]:
    """The keys of norms in checkpoints, where they are not the modules' names."""
    norms = {
        "input_layernorm.": None if handover.borrows else MIXER_NORM_NAMES.get(layer.mixer),
        "pre_mlp_layernorm.": FEED_FORWARD_NORM_NAMES.get(layer.feed_forward),
    }
    return {norm: name for norm, name in norms.items() if name is not None}


def _feed_forward_spec(arch: Arch, kind: str) -> ModuleSpec | type:
    if kind == "none":
        return IdentityOp
    if kind == "moe":
        return _moe_spec(arch)
    has_bias = arch.mlp is not None and arch.mlp.bias
    return ModuleSpec(module=FeedForward, submodules=_linears(has_bias))


def _moe_spec(arch: Arch) -> ModuleSpec:
    assert arch.moe is not None
    spec = get_mlp_module_spec_for_backend(Provider(), num_experts=arch.moe.experts)
    spec.submodules = replace(
        cast("MoESubmodules", spec.submodules),
        router=partial(Router, facts=arch.moe.router),
        experts=ModuleSpec(module=Experts, submodules=_linears(arch.moe.bias)),
    )
    # Of what a token chose, zero experts are not sent: what is sent differs from token to token.
    spec.module = ZeroExpertMixture if arch.moe.router.zero_experts else Mixture
    return spec


def _linears(has_bias: bool) -> MLPSubmodules:
    column, row = (
        ModuleSpec(module=linear, params={"has_bias": has_bias})
        for linear in (ColumnLinear, RowLinear)
    )
    return MLPSubmodules(linear_fc1=column, linear_fc2=row)


def _latent_spec(arch: Arch, layer: LayerRun, handover: Handover) -> ModuleSpec:
    assert arch.mla is not None
    position = arch.position
    options = LatentOptions(
        is_interleaved=isinstance(position, Rope) and position.interleaved,
        has_rope=layer.rope and isinstance(position, Rope),
        window=layer.window,
        has_indexer=arch.mla.indexer is not None and not handover.borrows,
    )
    return ModuleSpec(module=LatentAttention, params={"mla": arch.mla, "options": options})


def _attention_spec(arch: Arch, layer: LayerRun, handover: Handover) -> ModuleSpec:
    assert arch.attention is not None
    attention, position = arch.attention, arch.position
    core = partial(
        CoreAttention,
        window=layer.window,
        softcap=attention.softcap,
        sinks=attention.sinks,
        alibi_heads=attention.heads if position.kind == "alibi" else None,
    )
    q_norm, k_norm = HEAD_NORMS[attention.qk_norm](attention)
    return ModuleSpec(
        module=Attention,
        params={
            "attn_mask_type": AttnMaskType.causal,
            "has_rope": layer.rope and isinstance(position, Rope),
            "is_interleaved": isinstance(position, Rope) and position.interleaved,
            "lends": handover.hands_on and not handover.borrows and attention.shared_kv > 1,
            "borrows": handover.borrows,
            "has_qkv_bias": attention.qkv_bias,
        },
        submodules=SelfAttentionSubmodules(
            linear_qkv=_no_linear  # pyright: ignore[reportArgumentType]  # nothing of a builder's
            if handover.borrows
            else partial(ColumnLinear, has_bias=attention.qkv_bias),
            core_attention=core,
            linear_proj=ModuleSpec(module=RowLinear, params={"has_bias": attention.out_bias}),
            q_layernorm=q_norm,
            k_layernorm=k_norm,
        ),
    )


def _no_linear(*_args: object, **_kwargs: object) -> None:
    """For layers that have no keys and values of their own."""


def _all_heads(attention: AttentionFacts) -> tuple[ModuleSpec, ModuleSpec]:
    counts = (attention.heads, attention.query_groups)
    q, k = (ModuleSpec(module=AllHeadsNorm, params={"heads": count}) for count in counts)
    return q, k


# attention.qk_norm → the modules of q_layernorm and k_layernorm.
HEAD_NORMS: Mapping[
    str, Callable[[AttentionFacts], tuple[ModuleSpec | type, ModuleSpec | type]]
] = MappingProxyType(
    {
        "none": lambda _: (IdentityOp, IdentityOp),
        "head": lambda _: (Norm, Norm),
        "head_after_rope": lambda _: (LateHeadNorm, LateHeadNorm),
        "full": _all_heads,
    }
)

# layers.mixer → the spec of self_attention.
MIXERS: Mapping[str, Callable[[Arch, LayerRun, Handover], ModuleSpec | type]] = MappingProxyType(
    {
        "attention": _attention_spec,
        "mla": _latent_spec,
        "gdn": lambda arch, *_: ModuleSpec(module=GatedDeltaNet, params={"gdn": arch.gdn}),
        "mamba2": lambda arch, *_: ModuleSpec(module=MambaMixer, params={"mamba": arch.mamba2}),
        "none": lambda *_: IdentityOp,
    }
)
