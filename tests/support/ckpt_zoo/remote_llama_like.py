"""Dense families that are Llama, Qwen2 or GLM under other names; rearranged by hand here."""

import torch
import transformers

from ckpt_zoo.case import Case
from ckpt_zoo.remote_folder import VOCAB, layers, read, run, writer
from ckpt_zoo.remote_hub import (
    AQUILA_CONFIG,
    BAICHUAN,
    BAICHUAN_CONFIG,
    CHATGLM,
    CHATGLM_CONFIG,
    DIM,
    FFN,
    GROUPED,
    GROUPS,
    HEADS,
    HIDDEN,
    INTERNLM,
    INTERNLM2,
    INTERNLM2_BIAS,
    INTERNLM2_CONFIG,
    INTERNLM_CONFIG,
    KV,
    LAYERS,
    MINICPM,
    MINICPM_CONFIG,
    QWEN,
    QWEN_CONFIG,
    WIDTH,
    YI,
    YI_CONFIG,
)


def llama(groups=HEADS, *, cls="Llama", length=64, base=10000.0, scaling=None, **changed):
    """A model of transformers of these sizes."""
    rope = {"rope_type": "default", "rope_theta": base, **(scaling or {})}
    config = getattr(transformers, f"{cls}Config")(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=groups,
        head_dim=DIM,
        max_position_embeddings=length,
        vocab_size=VOCAB,
        tie_word_embeddings=False,
        rope_parameters=rope,
        attn_implementation="eager",
        **{"intermediate_size": FFN, "rms_norm_eps": 1e-5, "pad_token_id": None, **changed},
    )
    return getattr(transformers, f"{cls}ForCausalLM")(config)


def renamed(state, *pairs):
    """The state under names with each old part replaced by the new."""
    for old, new in pairs:
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    return state


def unpacked(state, name, sizes, new):
    """The tensors called `name` in each layer cut into rows of `sizes`, called as `new` says."""
    out = {}
    for key, tensor in state.items():
        if name not in key:
            out[key] = tensor
            continue
        for part, label in zip(tensor.split(sizes), new, strict=True):
            out[key.replace(name, label)] = part
    return out


QKV = [f"self_attn.{part}_proj" for part in "qkv"]


def baichuan_7b(folder, tokens):
    """Baichuan: all of q, k, v in W_pack; Baichuan 2: rows of the head have length 1."""
    config, state = read(folder)
    state = unpacked(state, "self_attn.W_pack", [WIDTH] * 3, QKV)
    if "z_loss_weight" in config:
        head = state["lm_head.weight"]
        state["lm_head.weight"] = head / head.norm(dim=1, keepdim=True)
    return run(llama(), state, tokens)


def chatglm(folder, tokens):
    """ChatGLM is transformers' GLM but for packing; rope_ratio multiplies the base."""
    config, state = read(folder)
    state = renamed(
        state,
        ("transformer.embedding.word_embeddings", "model.embed_tokens"),
        ("transformer.encoder.final_layernorm", "model.norm"),
        ("transformer.output_layer", "lm_head"),
        ("transformer.encoder.layers", "model.layers"),
        ("self_attention.dense", "self_attn.o_proj"),
        ("mlp.dense_h_to_4h", "mlp.gate_up_proj"),
        ("mlp.dense_4h_to_h", "mlp.down_proj"),
    )
    state = unpacked(state, "self_attention.query_key_value", [WIDTH, KV, KV], QKV)
    model = llama(
        GROUPS,
        cls="Glm",
        base=10000.0 * config.get("rope_ratio", 1),
        scaling={"partial_rotary_factor": 0.5},
        attention_bias=True,
    )
    return run(model, state, tokens)


def internlm(folder, tokens):
    """Llama with biases; dynamic NTK of factor 1 grows the base beyond the trained length."""
    config, state = read(folder)
    scaling = {"rope_type": "dynamic", "factor": 1.0} if "rotary" in config else None
    length = config["max_position_embeddings"]
    has_bias = config["bias"]
    return run(llama(length=length, scaling=scaling, attention_bias=has_bias), state, tokens)


def internlm2(folder, tokens):
    """Each query group has its queries, key and value together in wqkv."""
    config, state = read(folder)
    state = renamed(
        state,
        ("model.tok_embeddings", "model.embed_tokens"),
        ("output.weight", "lm_head.weight"),
        ("attention_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("attention.wo", "self_attn.o_proj"),
        ("feed_forward.w1", "mlp.gate_proj"),
        ("feed_forward.w3", "mlp.up_proj"),
        ("feed_forward.w2", "mlp.down_proj"),
    )
    per_group = HEADS // GROUPS * DIM
    for name in [name for name in state if "wqkv" in name]:
        rows = {part: [] for part in "qkv"}
        for group in state.pop(name).chunk(GROUPS):
            rows["q"].append(group[:per_group])
            rows["k"].append(group[per_group : per_group + DIM])
            rows["v"].append(group[per_group + DIM :])
        for part, pieces in rows.items():
            new = name.replace("attention.wqkv", f"self_attn.{part}_proj")
            state[new] = torch.cat(pieces)
    model = llama(
        GROUPS,
        length=config["max_position_embeddings"],
        base=config["rope_theta"],
        scaling={"rope_type": "dynamic", "factor": config["rope_scaling"]["factor"]},
        attention_bias=config["bias"],
    )
    return run(model, state, tokens)


def qwen(folder, tokens):
    """Qwen 1 is Qwen2 with q, k, v together; w2 goes through SiLU."""
    _, state = read(folder)
    state = renamed(
        state,
        ("transformer.wte", "model.embed_tokens"),
        ("transformer.ln_f", "model.norm"),
        ("transformer.h.", "model.layers."),
        ("ln_1", "input_layernorm"),
        ("ln_2", "post_attention_layernorm"),
        ("attn.c_proj", "self_attn.o_proj"),
        ("mlp.c_proj", "mlp.down_proj"),
        ("mlp.w2", "mlp.gate_proj"),
        ("mlp.w1", "mlp.up_proj"),
    )
    state = unpacked(state, "attn.c_attn", [WIDTH] * 3, QKV)
    return run(llama(cls="Qwen2"), state, tokens)


def aquila(folder, tokens):
    """Llama."""
    config, state = read(folder)
    return run(llama(config["num_key_value_heads"], base=config["rope_theta"]), state, tokens)


def yi(folder, tokens):
    """Llama with other names of its norms."""
    config, state = read(folder)
    state = renamed(state, (".ln1.", ".input_layernorm."), (".ln2.", ".post_attention_layernorm."))
    return run(llama(config["num_key_value_heads"], base=config["rope_theta"]), state, tokens)


def minicpm(folder, tokens):
    """Llama whose weights carry the multipliers: embedding, outputs of both branches, head."""
    config, state = read(folder)
    residual = config["scale_depth"] / LAYERS**0.5
    head = state.get("lm_head.weight", state["model.embed_tokens.weight"])
    for name in state:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            state[name] = state[name] * residual
    state["lm_head.weight"] = head * config["dim_model_base"] / HIDDEN
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"] * config["scale_emb"]
    return run(llama(config["num_key_value_heads"]), state, tokens)


def case(family, config, shapes, logits, name="", **changed):
    """A case whose folder has `config` with `changed`."""
    return Case(family, name=name, write=writer({**config, **changed}, shapes), logits=logits)


CASES = (
    case("baichuan", BAICHUAN_CONFIG, BAICHUAN, baichuan_7b, "7b", max_position_embeddings=64),
    case(
        "baichuan",
        BAICHUAN_CONFIG,
        BAICHUAN,
        baichuan_7b,
        "2-7b",
        max_position_embeddings=64,
        z_loss_weight=0,
    ),
    case("chatglm", CHATGLM_CONFIG, CHATGLM, chatglm, "3"),
    case(
        "chatglm",
        CHATGLM_CONFIG,
        CHATGLM,
        chatglm,
        "glm4",
        rope_ratio=500,
        num_hidden_layers=LAYERS,
        vocab_size=VOCAB,
        classifier_dropout=None,
    ),
    case("internlm", INTERNLM_CONFIG, INTERNLM, internlm, "7b"),
    case(
        "internlm",
        INTERNLM_CONFIG,
        INTERNLM,
        internlm,
        "dynamic",
        rotary={"base": 10000, "type": "dynamic"},
    ),
    case("internlm2", INTERNLM2_CONFIG, INTERNLM2, internlm2),
    case(
        "internlm2",
        INTERNLM2_CONFIG,
        {**INTERNLM2, **layers(LAYERS, **INTERNLM2_BIAS)},
        internlm2,
        "biases",
        bias=True,
    ),
    case("qwen", QWEN_CONFIG, QWEN, qwen),
    case("aquila", AQUILA_CONFIG, GROUPED, aquila, "2-34b"),
    case("Yi", YI_CONFIG, YI, yi),
    case("minicpm", MINICPM_CONFIG, MINICPM, minicpm, "2b", tie_word_embeddings=False),
    case(
        "minicpm",
        MINICPM_CONFIG,
        {name: shape for name, shape in MINICPM.items() if name != "lm_head.weight"},
        minicpm,
        "tied",
    ),
)
