"""Families that no model of transformers can stand for, computed by hand (remote_reference.py)."""

import torch
import torch.nn.functional as F
import transformers

from ckpt_zoo.case import Case
from ckpt_zoo.remote_folder import VOCAB, layers, read, run, writer
from ckpt_zoo.remote_hub import (
    AT,
    BAICHUAN,
    BAICHUAN_CONFIG,
    DIM,
    ENDS,
    FFN,
    GROUPS,
    HEADS,
    HIDDEN,
    KV,
    LAYERS,
    SIZES,
    WIDTH,
    norms,
)
from ckpt_zoo.remote_moe import EXPERTS, PROJECTIONS, experts
from ckpt_zoo.remote_reference import (
    alibi,
    attend,
    gated,
    mixture,
    rms_norm,
    rotary,
    split_heads,
)

EPS = SIZES["rms_norm_eps"]


class _Layer:
    """Reads one layer's tensors; `linear` applies one."""

    def __init__(self, state, index):
        self.state, self.at = state, f"model.layers.{index}."

    def __getitem__(self, name):
        return self.state[self.at + name]

    def has(self, name):
        return self.at + name in self.state

    def linear(self, name, x):
        bias = self[f"{name}.bias"] if self.has(f"{name}.bias") else None
        return F.linear(x, self[f"{name}.weight"], bias)

    def norm(self, name, x):
        return rms_norm(x, self[name], EPS)

    def gated(self, at, x, names=PROJECTIONS, activation=F.silu):
        weights = [self[f"{at}{name}.weight"] for name in names]
        return gated(x, *weights, activation=activation)


def _head(state):
    return state.get("lm_head.weight", state["model.embed_tokens.weight"])


def baichuan_13b(folder, tokens):
    """Llama with ALiBi in the place of rope, all of q, k, v in W_pack."""
    config, state = read(folder)
    x, bias = state["model.embed_tokens.weight"][tokens], alibi(HEADS, tokens.shape[1])
    for i in range(LAYERS):
        layer = _Layer(state, i)
        h = layer.norm("input_layernorm.weight", x)
        q, k, v = (split_heads(p, HEADS) for p in layer.linear("self_attn.W_pack", h).chunk(3, -1))
        x = x + layer.linear("self_attn.o_proj", attend(q, k, v, bias=bias))
        x = x + layer.gated("mlp.", layer.norm("post_attention_layernorm.weight", x))
    head = state["lm_head.weight"]
    if "z_loss_weight" in config:
        head = head / head.norm(dim=1, keepdim=True)
    return rms_norm(x, state["model.norm.weight"], EPS) @ head.T


def hunyuan(folder, tokens):
    """Every second layer uses the keys and values of the one before; norms follow rope."""
    config, state = read(folder)
    top_k, base = config["moe_topk"], config["rope_theta"]
    if config["rope_scaling"]:
        base = base * config["rope_scaling"]["alpha"] ** (DIM / (DIM - 2))
    x = state["model.embed_tokens.weight"][tokens]
    for i in range(LAYERS):
        layer = _Layer(state, i)
        h = layer.norm("input_layernorm.weight", x)
        q = rotary(split_heads(layer.linear("self_attn.q_proj", h), HEADS), base)
        if i % config["cla_share_factor"] == 0:
            key = rotary(split_heads(layer.linear("self_attn.k_proj", h), GROUPS), base)
            value = split_heads(layer.linear("self_attn.v_proj", h), GROUPS)
        q = layer.norm("self_attn.query_layernorm.weight", q)
        k = layer.norm("self_attn.key_layernorm.weight", key)
        x = x + layer.linear("self_attn.o_proj", attend(q, k, value))
        h = layer.norm("post_attention_layernorm.weight", x)

        def expert(number, row, layer=layer):
            return layer.gated(f"mlp.experts.{number}.", row)

        routed = mixture(h, layer["mlp.gate.wg.weight"], top_k, expert, normalize=top_k > 1)
        x = x + routed + layer.gated("mlp.shared_mlp.", h)
    return rms_norm(x, state["model.norm.weight"], EPS) @ _head(state).T


GROK_EXPERT = ("linear", "linear_v", "linear_1")


def grok(folder, tokens):
    """Norms before and after both branches, capped scores, experts with GELU."""
    config, state = read(folder)
    embedding = state["model.embed_tokens.weight"]
    x = embedding[tokens] * config["embedding_multiplier_scale"]
    for i in range(LAYERS):
        layer = _Layer(state, i)
        h = layer.norm("pre_attn_norm.scale", x)
        q, k, v = (
            split_heads(layer.linear(f"attn.{part}_proj", h), heads)
            for part, heads in (("q", HEADS), ("k", GROUPS), ("v", GROUPS))
        )
        h = attend(
            rotary(q, 10000.0),
            rotary(k, 10000.0),
            v,
            scale=config["attn_output_multiplier"],
            cap=config["max_attn_value"],
        )
        x = x + layer.norm("post_attn_norm.scale", layer.linear("attn.o_proj", h))

        def expert(number, row, layer=layer):
            return layer.gated(f"moe_block.experts.{number}.", row, GROK_EXPERT, F.gelu)

        h = layer.norm("pre_moe_norm.scale", x)
        h = mixture(h, layer["moe_block.gate.weight"], config["num_experts_per_tok"], expert)
        x = x + layer.norm("post_moe_norm.scale", h)
    x = rms_norm(x, state["model.norm.scale"], EPS)
    return x @ _head(state).T * config["output_multiplier_scale"]


class SquaredRelu(torch.nn.Module):
    """PLM's feed-forward."""

    def __init__(self):
        super().__init__()
        self.up_proj = torch.nn.Linear(HIDDEN, FFN, bias=False)
        self.down_proj = torch.nn.Linear(FFN, HIDDEN, bias=False)

    def forward(self, x):
        """down(relu(up x)²)."""
        return self.down_proj(self.up_proj(x).clamp(min=0).pow(2))


def plm(folder, tokens):
    """DeepSeek-V3 without experts and query latent, its feed-forwards exchanged."""
    config, state = read(folder)
    sizes = ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
    model = transformers.DeepseekV3ForCausalLM(
        transformers.DeepseekV3Config(
            **{key: config[key] for key in sizes},
            q_lora_rank=None,
            hidden_size=HIDDEN,
            intermediate_size=FFN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            first_k_dense_replace=LAYERS,
            rms_norm_eps=EPS,
            vocab_size=VOCAB,
            tie_word_embeddings=False,
            rope_interleave=True,
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
            attn_implementation="eager",
        )
    )
    for layer in model.model.layers:
        layer.mlp = SquaredRelu()
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    return run(model, state, tokens)


_TIED = {name: shape for name, shape in ENDS.items() if name != "lm_head.weight"}
_SHARED, _CLA = 2, 2


def _hunyuan_shapes():
    shapes = dict(_TIED)
    for i in range(LAYERS):
        rows = {"q_proj": WIDTH, "o_proj": HIDDEN}
        rows |= {"k_proj": KV, "v_proj": KV} if i % _CLA == 0 else {}
        layer = {
            **norms(),
            **{f"{AT}self_attn.{name}.weight": (n, HIDDEN) for name, n in rows.items()},
            **{f"{AT}self_attn.{name}.bias": (n,) for name, n in rows.items()},
            AT + "self_attn.query_layernorm.weight": (DIM,),
            AT + "self_attn.key_layernorm.weight": (DIM,),
            AT + "mlp.gate.wg.weight": (EXPERTS, HIDDEN),
            **experts("mlp.experts.{e}.", PROJECTIONS, FFN),
            **experts("mlp.shared_mlp.", PROJECTIONS, _SHARED * FFN, 1),
        }
        shapes |= {name.format(i=i): shape for name, shape in layer.items()}
    return shapes


HUNYUAN_CONFIG = {
    **SIZES,
    "architectures": ["HunYuanForCausalLM"],
    "attention_bias": True,
    "auto_map": {"AutoConfig": "configuration_hunyuan.HunYuanConfig"},
    "cla_share_factor": _CLA,
    "max_position_embeddings": 64,
    "mlp_bias": False,
    "model_type": "hunyuan",
    "moe_topk": 1,
    "norm_type": "hf_rms",
    "num_experts": EXPERTS,
    "num_key_value_heads": GROUPS,
    "num_shared_expert": _SHARED,
    "pretraining_tp": 1,
    "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"},
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "use_cla": True,
    "use_mixed_mlp_moe": True,
    "use_qk_norm": True,
}
GROK = {
    "model.embed_tokens.weight": (VOCAB, HIDDEN),
    "model.norm.scale": (HIDDEN,),
    **layers(
        LAYERS,
        **{
            f"{AT}{when}_{what}_norm.scale": (HIDDEN,)
            for when in ("pre", "post")
            for what in ("attn", "moe")
        },
        **{
            f"{AT}attn.{part}_proj.weight": (rows, HIDDEN)
            for part, rows in (("q", WIDTH), ("k", KV), ("v", KV), ("o", HIDDEN))
        },
        **{AT + "moe_block.gate.weight": (EXPERTS, HIDDEN)},
        **experts("moe_block.experts.{e}.", GROK_EXPERT, FFN),
    ),
}
GROK_CONFIG = {
    **{key: value for key, value in SIZES.items() if key != "hidden_act"},
    "architectures": ["Grok1ModelForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_grok1.Grok1Config"},
    "model_type": "grok-1",
    "num_key_value_heads": GROUPS,
    "attn_output_multiplier": 0.3,
    "embedding_multiplier_scale": 9.8,
    "output_multiplier_scale": 0.5773502691896257,
    # Low enough to bite on the small scores here.
    "max_attn_value": 2.0,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "num_experts_per_tok": 2,
    "num_experts": EXPERTS,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}
_RANK, _NOPE, _ROPE, _VALUE = 20, 12, 8, 10
PLM_LAYER = {
    **norms(),
    AT + "self_attn.q_proj.weight": (HEADS * (_NOPE + _ROPE), HIDDEN),
    AT + "self_attn.kv_a_proj_with_mqa.weight": (_RANK + _ROPE, HIDDEN),
    AT + "self_attn.kv_a_layernorm.weight": (_RANK,),
    AT + "self_attn.kv_b_proj.weight": (HEADS * (_NOPE + _VALUE), _RANK),
    AT + "self_attn.o_proj.weight": (HIDDEN, HEADS * _VALUE),
    AT + "mlp.up_proj.weight": (FFN, HIDDEN),
    AT + "mlp.down_proj.weight": (HIDDEN, FFN),
}
PLM_CONFIG = {
    **SIZES,
    "architectures": ["PLMForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_plm.PLMConfig"},
    "model_type": "plm",
    "attention_bias": False,
    "hidden_act": "relu2",
    "kv_lora_rank": _RANK,
    "max_position_embeddings": 64,
    "num_key_value_heads": HEADS,
    "pretraining_tp": 1,
    "q_lora_rank": None,
    "qk_nope_head_dim": _NOPE,
    "qk_rope_head_dim": _ROPE,
    "rope_scaling": None,
    "rope_theta": 100000.0,
    "v_head_dim": _VALUE,
}

HEAD = {"lm_head.weight": (VOCAB, HIDDEN)}


def _hunyuan(name, **changed):
    config = {**HUNYUAN_CONFIG, **changed}
    shapes = _hunyuan_shapes() | ({} if config["tie_word_embeddings"] else HEAD)
    return Case("hunyuan", name=name, write=writer(config, shapes), logits=hunyuan, max_ep=2)


CASES = (
    Case("baichuan", name="13b", write=writer(BAICHUAN_CONFIG, BAICHUAN), logits=baichuan_13b),
    Case(
        "baichuan",
        name="2-13b",
        write=writer({**BAICHUAN_CONFIG, "z_loss_weight": 0}, BAICHUAN),
        logits=baichuan_13b,
    ),
    _hunyuan("large"),
    _hunyuan("untied", tie_word_embeddings=False, moe_topk=3, rope_scaling=None),
    Case("grok-1", write=writer(GROK_CONFIG, GROK), logits=grok, max_ep=2),
    Case(
        "grok-1",
        name="untied",
        write=writer({**GROK_CONFIG, "tie_word_embeddings": False}, {**GROK, **HEAD}),
        logits=grok,
        max_ep=2,
    ),
    Case(
        "plm",
        name="tied",
        write=writer(
            {**PLM_CONFIG, "tie_word_embeddings": True},
            {**_TIED, **layers(LAYERS, **PLM_LAYER)},
        ),
        logits=plm,
    ),
    Case("plm", write=writer(PLM_CONFIG, {**ENDS, **layers(LAYERS, **PLM_LAYER)}), logits=plm),
)
