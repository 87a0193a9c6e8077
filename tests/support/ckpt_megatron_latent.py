"""GPT models with latent attention and experts built by megatron-core itself on CPU."""

import torch


def build(document, *, vocab):
    """The model of an arch.json document (latent attention, dense layers first, then experts)."""
    _start()
    return _model(document, _config(document), vocab)


def indexer_shapes(document):
    """Names and shapes of megatron-core's own indexer of an arch.json document."""
    from megatron.core.transformer.experimental_attention_variant import dsa

    _start()
    config, facts = _config(document), document["mla"]["indexer"]
    config.dsa_indexer_n_heads = facts["heads"]
    config.dsa_indexer_head_dim = facts["head_dim"]
    config.dsa_indexer_topk = facts["top_k"]
    parts = dsa.DSAIndexerSubmodules(_Linear, _Linear, _LayerNorm, _Linear)
    return {name: tuple(t.shape) for name, t in dsa.DSAIndexer(config, parts).state_dict().items()}


def _start():
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer import multi_latent_attention

    from llm_train.edge.patches import Patches, patch_cpu, patch_gaps

    patches = Patches()
    patch_cpu(patches)
    patch_gaps(patches)
    # Its names of Transformer Engine are None here, yet it believes to have imported them.
    patches.set(multi_latent_attention, "HAVE_TE", False)
    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(1, 1)
    model_parallel_cuda_manual_seed(1)


def fill(model, read):
    """Copy `read(name)` into every parameter and buffer that the model stores; their names."""
    state = {
        name: tensor for name, tensor in model.state_dict().items() if "_extra_state" not in name
    }
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(read(name))
    return list(state)


def _config(document):
    from megatron.core.transformer.transformer_config import MLATransformerConfig

    mla, position = document["mla"], document["position"]
    return MLATransformerConfig(
        num_layers=sum(run["count"] for run in document["layers"]),
        hidden_size=document["hidden_size"],
        ffn_hidden_size=document["mlp"]["ffn_hidden_size"],
        num_attention_heads=mla["heads"],
        q_lora_rank=mla["q_lora_rank"],
        kv_lora_rank=mla["kv_lora_rank"],
        qk_head_dim=mla["qk_nope_head_dim"],
        qk_pos_emb_head_dim=mla["qk_rope_head_dim"],
        v_head_dim=mla["v_head_dim"],
        rotary_base=position["base"],
        **_rope(position["scaling"]),
        **_experts(document),
        mtp_num_layers=document["mtp"]["layers"] if document["mtp"] else None,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        layernorm_epsilon=document["norm"]["eps"],
        use_cpu_initialization=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        transformer_impl="local",
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
    )


def _rope(scaling):
    if scaling is None:
        return {"rope_type": "rope", "rotary_scaling_factor": 1.0}
    said = (
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
    )
    return {
        "rope_type": scaling["kind"],
        "rotary_scaling_factor": scaling["factor"],
        **{key: scaling[key] for key in said},
    }


def _experts(document):
    moe = document["moe"]
    router = moe["router"]
    kinds = [
        run["feed_forward"] == "moe" for run in document["layers"] for _ in range(run["count"])
    ]
    return {
        "num_moe_experts": moe["experts"],
        "moe_ffn_hidden_size": moe["ffn_hidden_size"],
        "moe_shared_expert_intermediate_size": moe["shared"]["ffn_hidden_size"],
        "moe_layer_freq": [int(kind) for kind in kinds],
        "moe_router_topk": moe["top_k"],
        "moe_router_score_function": router["score"],
        "moe_router_pre_softmax": router["pre_softmax"],
        "moe_router_enable_expert_bias": router["bias"],
        "moe_router_num_groups": router["groups"],
        "moe_router_group_topk": router["top_groups"],
        "moe_router_topk_scaling_factor": router["scaling"],
        "moe_router_load_balancing_type": "none",
        "moe_token_dispatcher_type": "allgather",
    }


class RmsNorm(torch.nn.Module):
    """A norm; `fixed_eps` overrides the configuration's, as DeepSeek's latents have their own."""

    def __init__(self, config, hidden_size, eps=1e-5, fixed_eps=None, **_options):
        super().__init__()
        self.eps = eps if fixed_eps is None else fixed_eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size))

    def forward(self, x):
        """x [T, B, H]."""
        return torch.nn.functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class _Linear(torch.nn.Linear):
    """Stands for Transformer Engine's, which every rank holds whole."""

    def __init__(self, inputs, outputs, **_options):
        super().__init__(inputs, outputs, bias=False)


class _LayerNorm(torch.nn.LayerNorm):
    def __init__(self, config, hidden_size, eps):
        super().__init__(hidden_size, eps)


class CausalAttention(torch.nn.Module):
    """Megatron-core's own local attention cannot have values of another width than keys."""

    def __init__(self, config, softmax_scale=None, **_options):
        super().__init__()
        self.scale = softmax_scale

    def forward(self, query, key, value, attention_mask=None, **_options):
        """All [T, B, heads, D]."""
        q, k, v = (part.permute(1, 2, 0, 3) for part in (query, key, value))
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=self.scale
        )
        return out.permute(2, 0, 1, 3).flatten(2)


def _model(document, config, vocab):
    from megatron.core.models.gpt import gpt_layer_specs as specs
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer import transformer_block
    from megatron.core.transformer.spec_utils import ModuleSpec

    def layer(experts):
        spec = specs.get_gpt_layer_local_spec(
            num_experts=experts,
            qk_layernorm=True,
            multi_latent_attention=True,
            normalization="RMSNorm",
        )
        parts = spec.submodules
        parts.input_layernorm = parts.pre_mlp_layernorm = RmsNorm
        attention = parts.self_attention.submodules
        attention.core_attention = CausalAttention
        of_latent = ModuleSpec(RmsNorm, params={"fixed_eps": document["mla"]["norm_eps"]})
        attention.q_layernorm = attention.kv_layernorm = of_latent
        return spec

    transformer_block.LayerNormImpl = RmsNorm
    layers = [layer(config.num_moe_experts if kind else None) for kind in config.moe_layer_freq]
    block = transformer_block.TransformerBlockSubmodules(layer_specs=layers, layer_norm=RmsNorm)
    prediction = None
    if config.mtp_num_layers:
        prediction = specs.get_gpt_mtp_block_spec(config, layers[-1], use_transformer_engine=False)
        for spec in prediction.layer_specs:
            parts = spec.submodules
            parts.enorm = parts.hnorm = parts.layer_norm = RmsNorm
    return GPTModel(
        config,
        block,
        vocab_size=vocab,
        max_sequence_length=document["max_position_embeddings"],
        position_embedding_type="rope",
        share_embeddings_and_output_weights=document["tie_embeddings"],
        parallel_output=False,
        mtp_block_spec=prediction,
    )
