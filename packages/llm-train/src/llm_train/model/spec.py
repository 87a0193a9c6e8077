"""Layer specs for megatron-core, built from `arch.json` with our own modules and no patching."""

from functools import partial

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import get_mlp_module_spec_for_backend
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)

from llm_train.arch import Arch, Attention, LayerRun
from llm_train.model.modules import CoreAttention, Norm, OutLinear, QkvLinear

# Transformer Engine fuses the norms into the linears that follow them; checkpoints carry its names.
DENSE_CHECKPOINT_NAMES = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
MOE_CHECKPOINT_NAMES = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}


class Provider(LocalSpecProvider):
    """megatron-core's local modules, with our norms and one-by-one experts."""

    def layer_norm(self, rms_norm: bool = False, for_qk: bool = False) -> type:
        return Norm

    def grouped_mlp_modules(
        self, moe_use_grouped_gemm: bool, moe_use_legacy_grouped_gemm: bool
    ) -> tuple[type, MLPSubmodules | None]:
        linears = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
        return SequentialMLP, linears


def block_spec(
    arch: Arch, config: TransformerConfig, *, vp_stage: int | None
) -> TransformerBlockSubmodules:
    """The layers of this rank's stage (and of chunk `vp_stage`), and the final norm."""
    layers = list(arch.each_layer())
    first = get_transformer_layer_offset(config, vp_stage=vp_stage)
    mine = layers[first : first + get_num_layers_to_build(config, vp_stage=vp_stage)]
    return TransformerBlockSubmodules(
        layer_specs=[_layer_spec(arch, layer) for layer in mine],
        layer_norm=Norm,  # pyright: ignore[reportArgumentType]  # a class by shape
    )


def _layer_spec(arch: Arch, layer: LayerRun) -> ModuleSpec:
    assert arch.attention is not None
    is_moe = layer.feed_forward == "moe"
    experts = arch.moe.experts if is_moe and arch.moe is not None else None
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=Norm,
            self_attention=_attention_spec(arch.attention, window=layer.window),
            self_attn_bda=get_bias_dropout_add,  # pyright: ignore[reportArgumentType]  # a factory
            pre_mlp_layernorm=Norm,
            mlp=get_mlp_module_spec_for_backend(Provider(), num_experts=experts),
            mlp_bda=get_bias_dropout_add,  # pyright: ignore[reportArgumentType]  # a factory
            sharded_state_dict_keys_map=MOE_CHECKPOINT_NAMES if is_moe else DENSE_CHECKPOINT_NAMES,
        ),
    )


def _attention_spec(attention: Attention, *, window: int | None) -> ModuleSpec:
    head_norm = Norm if attention.qk_norm == "head" else IdentityOp
    return ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=partial(QkvLinear, has_bias=attention.qkv_bias),
            core_attention=partial(CoreAttention, window=window),
            linear_proj=ModuleSpec(module=OutLinear, params={"has_bias": attention.out_bias}),
            q_layernorm=head_norm,
            k_layernorm=head_norm,
        ),
    )
