"""Mixture-of-experts families that are a model of transformers but for names and multipliers."""

import torch
import transformers

from ckpt_zoo.case import Case
from ckpt_zoo.remote_folder import VOCAB, layers, read, run, stack_experts, writer
from ckpt_zoo.remote_hub import (
    AT,
    DIM,
    ENDS,
    FFN,
    GROUPS,
    HEADS,
    HIDDEN,
    LAYERS,
    MINICPM_CONFIG,
    SIZES,
    WIDTH,
    attention,
    norms,
)

EXPERTS, TOP, EXPERT_FFN = 8, 3, 24


def experts(hf, names, size, count=EXPERTS):
    """Shapes of gated experts: gate, up, down under `names`."""
    gate, up, down = names
    shapes = {}
    for e in range(count):
        at = AT + hf.replace("{e}", str(e))
        shapes |= {f"{at}{name}.weight": (size, HIDDEN) for name in (gate, up)}
        shapes[f"{at}{down}.weight"] = (HIDDEN, size)
    return shapes


PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
MINICPM_MOE = {
    **{name: shape for name, shape in ENDS.items() if name != "lm_head.weight"},
    **layers(
        LAYERS,
        **norms(),
        **attention(WIDTH),
        **{AT + "mlp.gate.weight": (EXPERTS, HIDDEN)},
        **experts("mlp.experts.{e}.", ("w1", "w3", "w2"), FFN),
    ),
}


def minicpm_moe(folder, tokens):
    """Mixtral whose weights carry the multipliers."""
    config, state = read(folder)
    residual = config["scale_depth"] / LAYERS**0.5
    at = "model.layers.{i}.mlp.experts.{e}."
    new = {name: tensor for name, tensor in state.items() if ".experts." not in name}
    for i in range(LAYERS):
        new |= stack_experts(
            state, EXPERTS, i, gate=at + "w1.weight", up=at + "w3.weight", down=at + "w2.weight"
        )
    for name in new:
        if name.endswith(("o_proj.weight", "experts.down_proj")):
            new[name] = new[name] * residual
    embedding = state["model.embed_tokens.weight"]
    new["lm_head.weight"] = embedding * config["dim_model_base"] / HIDDEN
    new["model.embed_tokens.weight"] = embedding * config["scale_emb"]
    model = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            hidden_size=HIDDEN,
            intermediate_size=FFN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            head_dim=DIM,
            num_local_experts=EXPERTS,
            num_experts_per_tok=TOP,
            rms_norm_eps=1e-5,
            vocab_size=VOCAB,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            attn_implementation="eager",
        )
    )
    return run(model, new, tokens)


def bailing(*, first_dense, bias=False, qk_norm=False, expert_bias=False, shared=1):
    """Shapes of a Ling model."""
    rows = (HEADS + 2 * GROUPS) * DIM
    mixer = {
        AT + "attention.query_key_value.weight": (rows, HIDDEN),
        AT + "attention.dense.weight": (HIDDEN, WIDTH),
        **({AT + "attention.query_key_value.bias": (rows,)} if bias else {}),
    }
    if qk_norm:
        mixer |= {AT + f"attention.{part}_layernorm.weight": (DIM,) for part in ("query", "key")}
    sparse = {
        AT + "mlp.gate.weight": (EXPERTS, HIDDEN),
        **({AT + "mlp.gate.expert_bias": (EXPERTS,)} if expert_bias else {}),
        **experts("mlp.experts.{e}.", PROJECTIONS, EXPERT_FFN),
        **experts("mlp.shared_experts.", PROJECTIONS, shared * EXPERT_FFN, 1),
    }
    dense = experts("mlp.", PROJECTIONS, FFN, 1)
    shapes = {
        "model.word_embeddings.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCAB, HIDDEN),
    }
    for i in range(LAYERS):
        layer = {**norms(), **mixer, **(dense if i < first_dense else sparse)}
        shapes |= {name.format(i=i): shape for name, shape in layer.items()}
    return shapes, {**norms(), **mixer, **sparse}


def _of_llamas_names(state, first_dense):
    """Ling's tensors under Llama's names, q, k, v apart, experts stacked."""
    new = {}
    for name, tensor in state.items():
        name = name.replace("word_embeddings", "embed_tokens")
        name = name.replace(".attention.dense.", ".self_attn.o_proj.")
        name = name.replace(".attention.query_layernorm.", ".self_attn.q_norm.")
        name = name.replace(".attention.key_layernorm.", ".self_attn.k_norm.")
        if "query_key_value" in name:
            ends = (HEADS * DIM, (HEADS + GROUPS) * DIM)
            for part, rows in zip("qkv", tensor.tensor_split(ends), strict=True):
                packed, apart = "attention.query_key_value", f"self_attn.{part}_proj"
                new[name.replace(packed, apart)] = rows
        elif ".mlp.experts." not in name:
            new[name] = tensor
    at = "model.layers.{i}.mlp.experts.{e}."
    gate, up, down = (f"{at}{name}.weight" for name in PROJECTIONS)
    for i in range(first_dense, LAYERS):
        new |= stack_experts(state, EXPERTS, i, gate=gate, up=up, down=down)
    return new


def bailing_1(folder, tokens):
    """Qwen2-MoE; its gate on shared experts, at 0, halves what here is doubled."""
    config, state = read(folder)
    first_dense = config["first_k_dense_replace"]
    state = _of_llamas_names(state, first_dense)
    for name in [name for name in state if "shared_experts" in name]:
        times = 2 if "down_proj" in name else 1
        state[name.replace("shared_experts", "shared_expert")] = times * state.pop(name)
    for i in range(first_dense, LAYERS):
        state[f"model.layers.{i}.mlp.shared_expert_gate.weight"] = torch.zeros(1, HIDDEN)
    if config["norm_head"]:
        head = state["lm_head.weight"]
        state["lm_head.weight"] = head / head.norm(dim=1, keepdim=True)
    model = transformers.Qwen2MoeForCausalLM(
        transformers.Qwen2MoeConfig(
            hidden_size=HIDDEN,
            intermediate_size=FFN,
            moe_intermediate_size=EXPERT_FFN,
            shared_expert_intermediate_size=EXPERT_FFN * config["num_shared_experts"],
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=GROUPS,
            num_experts=EXPERTS,
            num_experts_per_tok=TOP,
            norm_topk_prob=config["norm_topk_prob"],
            mlp_only_layers=list(range(first_dense)),
            qkv_bias=config["use_qkv_bias"],
            rms_norm_eps=1e-5,
            vocab_size=VOCAB,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
            attn_implementation="eager",
        )
    )
    return run(model, state, tokens)


def bailing_2(folder, tokens):
    """GLM-4.5's mixture: sigmoid, correction bias, groups, norms of q and k, half rotation."""
    config, state = read(folder)
    state = _of_llamas_names(state, config["first_k_dense_replace"])
    state = {
        name.replace("gate.expert_bias", "gate.e_score_correction_bias"): tensor
        for name, tensor in state.items()
        if not name.startswith(f"model.layers.{LAYERS}.")
    }
    model = transformers.Glm4MoeForCausalLM(
        transformers.Glm4MoeConfig(
            hidden_size=HIDDEN,
            intermediate_size=FFN,
            moe_intermediate_size=EXPERT_FFN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=GROUPS,
            head_dim=DIM,
            n_routed_experts=EXPERTS,
            n_shared_experts=config["num_shared_experts"],
            num_experts_per_tok=TOP,
            n_group=config["n_group"],
            topk_group=config["topk_group"],
            norm_topk_prob=True,
            routed_scaling_factor=config["routed_scaling_factor"],
            first_k_dense_replace=config["first_k_dense_replace"],
            use_qk_norm=True,
            attention_bias=config["use_qkv_bias"],
            rms_norm_eps=1e-5,
            vocab_size=VOCAB,
            pad_token_id=None,
            tie_word_embeddings=False,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": config["rope_theta"],
                "partial_rotary_factor": config["partial_rotary_factor"],
            },
            attn_implementation="eager",
        )
    )
    return run(model, state, tokens)


BAILING_1 = {
    **SIZES,
    "architectures": ["BailingMoeForCausalLM"],
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_bailing_moe.BailingMoeConfig"},
    "pad_token_id": 0,
    "first_k_dense_replace": 0,
    "max_position_embeddings": 64,
    "model_type": "bailing_moe",
    "moe_intermediate_size": EXPERT_FFN,
    "num_experts": EXPERTS,
    "num_shared_experts": 2,
    "norm_topk_prob": True,
    "num_experts_per_tok": TOP,
    "num_key_value_heads": GROUPS,
    "pretraining_tp": 1,
    "rope_scaling": None,
    "rope_theta": 600000,
    "use_bias": False,
    "use_qkv_bias": False,
    "output_router_logits": False,
    "embedding_dropout": 0.0,
    "norm_head": False,
    "norm_softmax": False,
    "output_dropout": 0.0,
}
BAILING_2 = {
    **{key: BAILING_1[key] for key in BAILING_1 if key not in ("norm_head", "norm_softmax")},
    "architectures": ["BailingMoeV2ForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_bailing_moe_v2.BailingMoeV2Config"},
    "first_k_dense_replace": 1,
    "head_dim": DIM,
    "max_window_layers": LAYERS,
    "moe_router_enable_expert_bias": True,
    "moe_shared_expert_intermediate_size": EXPERT_FFN,
    "mtp_loss_scaling_factor": 0,
    "n_group": 4,
    "num_nextn_predict_layers": 0,
    "num_shared_experts": 1,
    "partial_rotary_factor": 0.5,
    "routed_scaling_factor": 2.5,
    "router_dtype": "fp32",
    "score_function": "sigmoid",
    "topk_group": 2,
    "use_qk_norm": True,
}
_SHAPES_2, _LAYER_2 = bailing(first_dense=1, qk_norm=True, expert_bias=True)
_PREDICTION = {
    **_LAYER_2,
    **{f"{AT}{name}.weight": (HIDDEN,) for name in ("enorm", "hnorm", "final_layernorm")},
    AT + "eh_proj.weight": (HIDDEN, 2 * HIDDEN),
}
_WITH_PREDICTION = {
    **_SHAPES_2,
    **{name.format(i=LAYERS): shape for name, shape in _PREDICTION.items()},
}

CASES = (
    Case(
        "minicpm",
        name="moe-8x2b",
        write=writer(
            {**MINICPM_CONFIG, "model_type": "minicpm", "num_experts": EXPERTS}
            | {"num_experts_per_tok": TOP},
            MINICPM_MOE,
        ),
        logits=minicpm_moe,
        max_ep=2,
    ),
    Case(
        "bailing_moe",
        name="lite",
        write=writer(BAILING_1, bailing(first_dense=0, shared=2)[0]),
        logits=bailing_1,
        max_ep=2,
    ),
    Case(
        "bailing_moe",
        name="dense-first",
        write=writer(
            {**BAILING_1, "first_k_dense_replace": 2, "norm_head": True, "norm_topk_prob": False}
            | {"use_qkv_bias": True},
            bailing(first_dense=2, shared=2, bias=True)[0],
        ),
        logits=bailing_1,
        max_ep=2,
    ),
    Case(
        "bailing_moe",
        name="mini-2.0",
        write=writer({**BAILING_2, "num_nextn_predict_layers": 1}, _WITH_PREDICTION),
        logits=bailing_2,
        max_ep=2,
    ),
    Case(
        "bailing_moe_v2",
        write=writer(
            {**BAILING_2, "model_type": "bailing_moe_v2", "use_qkv_bias": True},
            bailing(first_dense=1, qk_norm=True, expert_bias=True, bias=True)[0],
        ),
        logits=bailing_2,
        max_ep=2,
    ),
)
