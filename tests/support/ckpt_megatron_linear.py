"""Models with linear attention or state spaces built by megatron-core itself on CPU.

What it takes from CUDA-only packages is put in its place: transformers' torch code for the Mamba2
scan, megatron-core's own torch code for the delta rule.
"""

import torch
import torch.nn.functional as F

LETTERS = {("mamba2", "none"): "M", ("attention", "none"): "*", ("none", "dense"): "-"}


class RmsNorm(torch.nn.Module):
    """A norm whose weight is stored as w − 1 when the config says so."""

    def __init__(self, config, hidden_size, eps=1e-5, **_options):
        super().__init__()
        self.eps, self.offset = eps, float(config.layernorm_zero_centered_gamma)
        self.weight = torch.nn.Parameter(torch.ones(hidden_size))

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight + self.offset, self.eps)


class PlainRmsNorm(RmsNorm):
    """The norm inside a gated delta net: never zero-centred (arch.json)."""

    def __init__(self, config, hidden_size, eps=1e-5, **options):
        super().__init__(config, hidden_size, eps, **options)
        self.offset = 0.0


class GroupedRmsNorm(torch.nn.Module):
    """What mamba_ssm's gated norm is, after the gate."""

    def __init__(self, hidden_size, eps, group_size, **_options):
        super().__init__()
        self.eps, self.group_size = eps, group_size
        self.weight = torch.nn.Parameter(torch.ones(hidden_size))

    def forward(self, x):
        groups = x.unflatten(-1, (-1, self.group_size))
        return F.rms_norm(groups, (self.group_size,), None, self.eps).flatten(-2) * self.weight

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
        """Cut with the heads (ExtendedRMSNorm in mamba_mixer.py, whose base is in mamba_ssm)."""
        from megatron.core import parallel_state
        from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

        return make_sharded_tensors_for_checkpoint(
            self.state_dict(keep_vars=True),
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
            dp_cp_group=metadata["dp_cp_group"],
        )


def build_mamba(document, *, tp=1, vocab, is_fused=True):
    """A MambaModel for an arch.json document, with the layer specs of a MambaStack.

    `is_fused`: norms are saved under Transformer Engine's names, else Mamba's under their own.
    """
    from megatron.core.models.mamba.mamba_model import MambaModel

    _start(tp)
    _replace_kernels()
    pattern = "".join(
        LETTERS[run["mixer"], run["feed_forward"]] * run["count"] for run in document["layers"]
    )
    return MambaModel(
        _config(document, tp=tp, **_mamba_sizes(document["mamba2"])),
        _mamba_stack(document, is_fused=is_fused),
        vocab_size=vocab,
        max_sequence_length=64,
        hybrid_override_pattern=pattern,
        position_embedding_type=document["position"]["kind"],
        rotary_base=document["position"].get("base", 1e4),
        rotary_percent=document["position"].get("fraction", 1.0),
        share_embeddings_and_output_weights=document["tie_embeddings"],
        parallel_output=False,
    )


def build_gdn(document, *, tp=1, vocab, is_fused=True):
    """A GPTModel whose layers are gated delta nets or gated attention, with dense feed-forwards.

    `is_fused`: norms are saved under Transformer Engine's names, else a delta net's under its own.
    """
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.ssm import gated_delta_net
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

    _start(tp)
    gated_delta_net.HAVE_FLA = True
    gated_delta_net.l2norm = lambda x: x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)
    mixers = [run["mixer"] for run in document["layers"] for _ in range(run["count"])]
    config = _config(document, tp=tp, **_gdn_sizes(document["gdn"], mixers))
    specs = [_transformer_layer(mixer, is_fused=is_fused) for mixer in mixers]
    return GPTModel(
        config,
        TransformerBlockSubmodules(layer_specs=specs, layer_norm=RmsNorm),
        vocab_size=vocab,
        max_sequence_length=64,
        position_embedding_type="rope",
        rotary_base=document["position"]["base"],
        rotary_percent=document["position"]["fraction"],
        share_embeddings_and_output_weights=document["tie_embeddings"],
        parallel_output=False,
    )


def _start(tp):
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from llm_train.edge.patches import Patches, patch_cpu, patch_gaps

    patches = Patches()
    patch_cpu(patches)
    patch_gaps(patches)
    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(tp)
    model_parallel_cuda_manual_seed(1)


def _mamba_sizes(mamba):
    return {
        "mamba_state_dim": mamba["state_dim"],
        "mamba_head_dim": mamba["head_dim"],
        "mamba_num_heads": mamba["heads"],
        "mamba_num_groups": mamba["groups"],
        "use_mamba_mem_eff_path": True,
    }


def _gdn_sizes(gdn, mixers):
    return {
        "linear_attention_freq": [int(mixer == "gdn") for mixer in mixers],
        "linear_conv_kernel_dim": gdn["conv_kernel"],
        "linear_key_head_dim": gdn["key_head_dim"],
        "linear_value_head_dim": gdn["value_head_dim"],
        "linear_num_key_heads": gdn["key_heads"],
        "linear_num_value_heads": gdn["value_heads"],
        "deterministic_mode": True,
    }


def _config(document, *, tp, **sizes):
    from megatron.core.transformer.transformer_config import TransformerConfig

    attention = document["attention"] or {"heads": 4, "query_groups": 4, "head_dim": 4}
    mlp = document["mlp"] or {"ffn_hidden_size": 4, "gated": False, "activation": "relu2"}
    activations = {"silu": F.silu, "relu2": lambda x: F.relu(x).square()}
    return TransformerConfig(
        num_layers=sum(run["count"] for run in document["layers"]),
        hidden_size=document["hidden_size"],
        ffn_hidden_size=mlp["ffn_hidden_size"],
        num_attention_heads=attention["heads"],
        num_query_groups=attention["query_groups"],
        kv_channels=attention["head_dim"],
        qk_layernorm=attention.get("qk_norm") == "head",
        attention_output_gate=attention.get("output_gate", False),
        add_bias_linear=False,
        gated_linear_unit=mlp["gated"],
        activation_func=activations[mlp["activation"]],
        normalization="RMSNorm",
        layernorm_epsilon=document["norm"]["eps"],
        layernorm_zero_centered_gamma=document["norm"]["zero_centered"],
        tensor_model_parallel_size=tp,
        sequence_parallel=tp > 1,
        use_cpu_initialization=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        transformer_impl="local",
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        **sizes,
    )


def _attention(qk_norm=None):
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
    from megatron.core.transformer.dot_product_attention import DotProductAttention
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.spec_utils import ModuleSpec

    parts = SelfAttentionSubmodules(
        linear_qkv=ColumnParallelLinear,
        core_attention=DotProductAttention,
        linear_proj=RowParallelLinear,
        q_layernorm=qk_norm,
        k_layernorm=qk_norm,
    )
    params = {"attn_mask_type": AttnMaskType.causal}
    return ModuleSpec(module=SelfAttention, params=params, submodules=parts)


def _mlp():
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.mlp import MLP, MLPSubmodules
    from megatron.core.transformer.spec_utils import ModuleSpec

    parts = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    return ModuleSpec(module=MLP, submodules=parts)


def _transformer_layer(mixer, *, is_fused):
    from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
    from megatron.core.ssm.gated_delta_net import GatedDeltaNet, GatedDeltaNetSubmodules
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_layer import (
        TransformerLayer,
        TransformerLayerSubmodules,
    )

    delta_net = ModuleSpec(
        module=GatedDeltaNet,
        submodules=GatedDeltaNetSubmodules(
            in_proj=ColumnParallelLinear, out_norm=PlainRmsNorm, out_proj=RowParallelLinear
        ),
    )
    linear = "in_proj" if mixer == "gdn" else "linear_qkv"
    first = {"input_layernorm.": f"self_attention.{linear}.layer_norm_"}
    parts = TransformerLayerSubmodules(
        input_layernorm=RmsNorm,
        self_attention=delta_net if mixer == "gdn" else _attention(RmsNorm),
        self_attn_bda=get_bias_dropout_add,
        pre_mlp_layernorm=RmsNorm,
        mlp=_mlp(),
        mlp_bda=get_bias_dropout_add,
        sharded_state_dict_keys_map={
            **(first if is_fused or mixer != "gdn" else {}),
            "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
        },
    )
    return ModuleSpec(module=TransformerLayer, submodules=parts)


def _mamba_stack(document, *, is_fused):
    from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
    from megatron.core.ssm.mamba_block import MambaStack, MambaStackSubmodules
    from megatron.core.ssm.mamba_layer import MambaLayer, MambaLayerSubmodules
    from megatron.core.ssm.mamba_mixer import MambaMixer, MambaMixerSubmodules
    from megatron.core.ssm.mlp_layer import MLPLayer
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_layer import (
        TransformerLayer,
        TransformerLayerSubmodules,
    )

    mixer = ModuleSpec(
        module=MambaMixer,
        params={"d_conv": document["mamba2"]["conv_kernel"], "chunk_size": 8},
        submodules=MambaMixerSubmodules(in_proj=ColumnParallelLinear, out_proj=RowParallelLinear),
    )
    mamba = MambaLayerSubmodules(
        norm=RmsNorm,
        mixer=mixer,
        mamba_bda=get_bias_dropout_add,
        sharded_state_dict_keys_map={"norm.": "mixer.in_proj.layer_norm_"} if is_fused else {},
    )
    attention = TransformerLayerSubmodules(
        input_layernorm=RmsNorm,
        self_attention=_attention(),
        self_attn_bda=get_bias_dropout_add,
        sharded_state_dict_keys_map={"input_layernorm.": "self_attention.linear_qkv.layer_norm_"},
    )
    mlp = TransformerLayerSubmodules(
        pre_mlp_layernorm=RmsNorm,
        mlp=_mlp(),
        mlp_bda=get_bias_dropout_add,
        sharded_state_dict_keys_map={"pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"},
    )
    layers = MambaStackSubmodules(
        mamba_layer=ModuleSpec(module=MambaLayer, submodules=mamba),
        attention_layer=ModuleSpec(module=TransformerLayer, submodules=attention),
        mlp_layer=ModuleSpec(module=MLPLayer, submodules=mlp),
    )
    return ModuleSpec(module=MambaStack, submodules=layers)


def _replace_kernels():
    """In this process, which a test forked for itself."""
    from megatron.core.ssm import mamba_block, mamba_context_parallel, mamba_mixer

    mamba_mixer.HAVE_MAMBA_SSM = mamba_mixer.HAVE_EINOPS = True
    mamba_context_parallel.HAVE_EINOPS = True
    mamba_mixer.ExtendedRMSNorm = GroupedRmsNorm
    mamba_mixer.rearrange = lambda x, pattern: _REARRANGED[pattern](x)
    mamba_mixer.mamba_split_conv1d_scan_combined = _scan
    mamba_block.TENorm = RmsNorm


_REARRANGED = {
    "l b d -> b l d": lambda x: x.transpose(0, 1),
    "b l d -> l b d": lambda x: x.transpose(0, 1),
    "d 1 w -> d w": lambda x: x.squeeze(1),
}


def _scan(rows, weight, bias, dt_bias, rate, *, D, chunk_size, headdim, ngroups, **_options):
    """mamba_ssm's kernel of that name without a norm: convolution, scan, gate."""
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

    heads, batch, length = len(dt_bias), *rows.shape[:2]
    inner, states = heads * headdim, (len(weight) - heads * headdim) // 2
    z, mixed, dt = rows.split([inner, len(weight), heads], dim=-1)
    mixed = F.pad(mixed.transpose(1, 2), (weight.shape[1] - 1, 0))
    mixed = F.silu(F.conv1d(mixed, weight[:, None], bias, groups=len(weight))).transpose(1, 2)
    x, write, read = mixed.split([inner, states, states], dim=-1)
    out = mamba2_chunk_scan(
        x.reshape(batch, length, heads, headdim),
        dt,
        rate,
        write.reshape(batch, length, ngroups, -1),
        read.reshape(batch, length, ngroups, -1),
        chunk_size=chunk_size,
        D=D,
        dt_bias=dt_bias,
        dt_softplus=True,
    )
    return out.reshape(batch, length, inner) * F.silu(z)
