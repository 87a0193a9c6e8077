"""GPT models built by megatron-core itself on CPU, independent of llm-train's builder."""

import torch


def build_chunks(document, *, tp=1, pp=1, vpp=None, vocab, is_per_layer=False):
    """This rank's model chunks for an arch.json document (dense, RMSNorm, rotary)."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from llm_train.edge.patches import Patches, patch_cpu, patch_gaps

    patches = Patches()
    patch_cpu(patches)
    patch_gaps(patches)
    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(tp, pp, virtual_pipeline_model_parallel_size=vpp)
    model_parallel_cuda_manual_seed(1)
    config = _config(document, tp=tp, pp=pp, vpp=vpp, is_per_layer=is_per_layer)
    return [_chunk(document, config, stage, vocab) for stage in range(vpp or 1)]


def logits_of(chunk, tokens):
    """Logits [B, T, V] of a one-chunk model at TP 1."""
    positions = torch.arange(tokens.shape[1])[None].expand_as(tokens)
    with torch.no_grad():
        return chunk.eval()(tokens, positions, None)


def _config(document, *, tp, pp, vpp, is_per_layer):
    from megatron.core.transformer.transformer_config import TransformerConfig

    attention = document["attention"]
    return TransformerConfig(
        num_layers=sum(run["count"] for run in document["layers"]),
        hidden_size=document["hidden_size"],
        ffn_hidden_size=document["mlp"]["ffn_hidden_size"],
        num_attention_heads=attention["heads"],
        num_query_groups=attention["query_groups"],
        kv_channels=attention["head_dim"],
        qk_layernorm=attention["qk_norm"] == "head",
        add_qkv_bias=attention["qkv_bias"],
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        layernorm_epsilon=document["norm"]["eps"],
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vpp,
        overlap_p2p_comm=vpp is not None,
        batch_p2p_comm=vpp is None,
        pipeline_dtype=torch.float32,
        hetereogenous_dist_checkpoint=is_per_layer,
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


def _chunk(document, config, stage, vocab):
    from megatron.core import parallel_state as state
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer import transformer_block

    class RmsNorm(torch.nn.Module):
        def __init__(self, config, hidden_size, eps=1e-5, **_options):
            super().__init__()
            self.eps = eps
            self.weight = torch.nn.Parameter(torch.ones(hidden_size))

        def forward(self, x):
            return torch.nn.functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)

    spec = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=config.qk_layernorm)
    layer = spec.submodules
    layer.input_layernorm = layer.pre_mlp_layernorm = RmsNorm
    if config.qk_layernorm:
        attention = layer.self_attention.submodules
        attention.q_layernorm = attention.k_layernorm = RmsNorm
    transformer_block.LayerNormImpl = RmsNorm
    vp_stage = stage if config.virtual_pipeline_model_parallel_size else None
    place = {} if vp_stage is None else {"ignore_virtual": False, "vp_stage": vp_stage}
    return GPTModel(
        config,
        spec,
        vocab_size=vocab,
        max_sequence_length=document["max_position_embeddings"],
        position_embedding_type="rope",
        rotary_base=document["position"]["base"],
        share_embeddings_and_output_weights=document["tie_embeddings"],
        pre_process=state.is_pipeline_first_stage(**place),
        post_process=state.is_pipeline_last_stage(**place),
        parallel_output=False,
        vp_stage=vp_stage,
    )
