"""GPT models built by megatron-core itself on CPU, independent of llm-train's builder."""

import re

import torch


def build_chunks(
    document,
    *,
    tp=1,
    pp=1,
    vpp=None,
    ep=1,
    etp=None,
    is_grouped=False,
    vocab,
    is_per_layer=False,
):
    """This rank's model chunks for an arch.json document (RMSNorm, rotary, local spec)."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from llm_train.edge.patches import Patches, patch_cpu, patch_gaps

    patches = Patches()
    patch_cpu(patches)
    patch_gaps(patches)
    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(
        tp,
        pp,
        virtual_pipeline_model_parallel_size=vpp,
        expert_model_parallel_size=ep,
        expert_tensor_parallel_size=etp,
    )
    model_parallel_cuda_manual_seed(1)
    parts = {"tp": tp, "pp": pp, "vpp": vpp, "ep": ep, "etp": etp, "is_grouped": is_grouped}
    config = _config(document, **parts, is_per_layer=is_per_layer)
    return [_chunk(document, config, stage, vocab) for stage in range(vpp or 1)]


def held_pieces(chunk, source, *, padded):
    """(name in the chunk, its tensor, what it must be) for every tensor of a chunk's state dict.

    What it must be is cut from `source` by rules written here once more: layers are counted by
    `layer_number`, experts from this rank's first one, and megatron-core's local spec cuts the rows
    of MLA's down projections.
    """
    from megatron.core import parallel_state as state

    tensor = (state.get_tensor_model_parallel_rank(), state.get_tensor_model_parallel_world_size())
    group = state.get_expert_tensor_parallel_group()
    expert = (group.rank(), group.size())
    for name, found in chunk.state_dict().items():
        if not torch.is_tensor(found):
            continue
        at, rest = _global_place(chunk, name)
        if ".experts.weight" in name:
            yield name, found, _grouped(chunk, source, at, rest, expert)
            continue
        if ".local_experts." in name:
            rest = _global_expert(chunk, rest)
        shard = expert if ".local_experts." in name else tensor
        wanted = source.read(at + rest, shard, padded_vocab_size=padded)
        if "_down_proj" in rest:
            wanted = wanted.chunk(tensor[1])[tensor[0]]
        yield name, found, wanted


def _global_place(chunk, name):
    if name == "output_layer.weight" and chunk.share_embeddings_and_output_weights:
        return "", "embedding.word_embeddings.weight"
    if not name.startswith("decoder.layers."):
        return "", name
    local, rest = name.removeprefix("decoder.layers.").split(".", 1)
    return f"decoder.layers.{chunk.decoder.layers[int(local)].layer_number - 1}.", rest


def _global_expert(chunk, rest):
    head, number, leaf = re.fullmatch(r"(.*local_experts\.)(\d+)(\..*)", rest).groups()
    return f"{head}{_first_expert(chunk) + int(number)}{leaf}"


def _first_expert(chunk):
    from megatron.core import parallel_state

    config = chunk.config
    each = config.num_moe_experts // config.expert_model_parallel_size
    return parallel_state.get_expert_model_parallel_rank() * each


def _grouped(chunk, source, at, rest, shard):
    """GroupedMLP multiplies by `weight.view(experts, in, out)`."""
    head, which = rest.split("weight")
    first = _first_expert(chunk)
    each = chunk.config.num_moe_experts // chunk.config.expert_model_parallel_size
    names = [f"{at}{head}local_experts.{first + e}.linear_fc{which}.weight" for e in range(each)]
    stacked = torch.stack([source.read(name, shard).T for name in names])
    hidden = chunk.config.hidden_size
    return stacked.reshape(hidden, -1) if which == "1" else stacked.reshape(-1, hidden)


def logits_of(chunk, tokens):
    """Logits [B, T, V] of a one-chunk model at TP 1."""
    positions = torch.arange(tokens.shape[1])[None].expand_as(tokens)
    with torch.no_grad():
        return chunk.eval()(tokens, positions, None)


def _config(document, *, tp, pp, vpp, ep, etp, is_grouped, is_per_layer):
    from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

    mla, moe = document["mla"], document["moe"]
    kind = MLATransformerConfig if mla else TransformerConfig
    return kind(
        num_layers=sum(run["count"] for run in document["layers"]),
        hidden_size=document["hidden_size"],
        ffn_hidden_size=(document["mlp"] or moe)["ffn_hidden_size"],
        **(_mla_options(mla) if mla else _attention_options(document["attention"])),
        **(_moe_options(document, is_grouped=is_grouped) if moe else {}),
        mtp_num_layers=document["mtp"]["layers"] if document["mtp"] else None,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        layernorm_epsilon=document["norm"]["eps"],
        tensor_model_parallel_size=tp,
        sequence_parallel=tp > 1 and ep > 1,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vpp,
        expert_model_parallel_size=ep,
        expert_tensor_parallel_size=etp,
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


def _attention_options(attention):
    return {
        "num_attention_heads": attention["heads"],
        "num_query_groups": attention["query_groups"],
        "kv_channels": attention["head_dim"],
        "qk_layernorm": attention["qk_norm"] == "head",
        "add_qkv_bias": attention["qkv_bias"],
    }


def _mla_options(mla):
    return {
        "num_attention_heads": mla["heads"],
        "q_lora_rank": mla["q_lora_rank"],
        "kv_lora_rank": mla["kv_lora_rank"],
        "qk_head_dim": mla["qk_nope_head_dim"],
        "qk_pos_emb_head_dim": mla["qk_rope_head_dim"],
        "v_head_dim": mla["v_head_dim"],
        "qk_layernorm": True,
        "rope_type": "rope",
    }


def _moe_options(document, *, is_grouped):
    moe, router = document["moe"], document["moe"]["router"]
    freq = [
        int(run["feed_forward"] == "moe") for run in document["layers"] for _ in range(run["count"])
    ]
    return {
        "num_moe_experts": moe["experts"],
        "moe_ffn_hidden_size": moe["ffn_hidden_size"],
        "moe_layer_freq": 1 if all(freq) else freq,
        "moe_router_topk": moe["top_k"],
        "moe_router_score_function": router["score"],
        "moe_router_enable_expert_bias": router["bias"],
        "moe_router_load_balancing_type": "none",
        "moe_shared_expert_intermediate_size": (moe["shared"] or {}).get("ffn_hidden_size"),
        "moe_shared_expert_gate": bool(moe["shared"] and moe["shared"]["gated"]),
        "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": is_grouped,
        "moe_use_legacy_grouped_gemm": is_grouped,
    }


def _chunk(document, config, stage, vocab):
    from megatron.core import parallel_state as state
    from megatron.core.models.gpt import gpt_layer_specs as specs
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer import multi_latent_attention, transformer_block
    from megatron.core.transformer.identity_op import IdentityOp
    from megatron.core.transformer.moe import grouped_gemm_util

    class RmsNorm(torch.nn.Module):
        def __init__(self, config, hidden_size, eps=1e-5, **_options):
            super().__init__()
            self.eps = eps
            self.weight = torch.nn.Parameter(torch.ones(hidden_size))

        def forward(self, x):
            return torch.nn.functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)

    # the library's check that its kernels are installed; the parameters do not need them
    grouped_gemm_util.assert_grouped_gemm_is_available = lambda: None
    # a class that it asks `isinstance` of, something else without Transformer Engine
    multi_latent_attention.TELinear = type("Absent", (), {})
    vp_stage = stage if config.virtual_pipeline_model_parallel_size else None
    spec = specs.get_gpt_decoder_block_spec(
        config, use_transformer_engine=False, normalization="RMSNorm", vp_stage=vp_stage
    )
    mtp = specs.get_gpt_mtp_block_spec(config, spec, False, vp_stage=vp_stage)
    for layer in (one.submodules for one in spec.layer_specs):
        layer.input_layernorm = layer.pre_mlp_layernorm = RmsNorm
        if config.multi_latent_attention:  # the local spec's own does not take MLA's arguments
            layer.self_attention.submodules.core_attention = IdentityOp
        for name in ("q_layernorm", "k_layernorm", "kv_layernorm"):
            if config.qk_layernorm and hasattr(layer.self_attention.submodules, name):
                setattr(layer.self_attention.submodules, name, RmsNorm)
    for layer in (one.submodules for one in (mtp.layer_specs if mtp else ())):
        layer.enorm = layer.hnorm = layer.layer_norm = RmsNorm
    spec.layer_norm = transformer_block.LayerNormImpl = RmsNorm
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
        mtp_block_spec=mtp,
        vp_stage=vp_stage,
    )
