"""Configurations and tensor shapes of dense families as their authors publish them, tiny."""

from ckpt_zoo.remote_folder import VOCAB, layers

HIDDEN, FFN, LAYERS, HEADS, GROUPS, DIM = 96, 80, 4, 6, 2, 16
WIDTH, KV = HEADS * DIM, GROUPS * DIM
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": True,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.33.1",
}
AT = "model.layers.{i}."
MLP = {
    AT + "mlp.gate_proj.weight": (FFN, HIDDEN),
    AT + "mlp.up_proj.weight": (FFN, HIDDEN),
    AT + "mlp.down_proj.weight": (HIDDEN, FFN),
}
ENDS = {
    "model.embed_tokens.weight": (VOCAB, HIDDEN),
    "model.norm.weight": (HIDDEN,),
    "lm_head.weight": (VOCAB, HIDDEN),
}


def norms(first="input_layernorm", second="post_attention_layernorm"):
    """Shapes of both norms of a layer."""
    return {f"{AT}{name}.weight": (HIDDEN,) for name in (first, second)}


def attention(kv, *, bias=False):
    """Shapes of Llama's four projections."""
    rows = {"q_proj": WIDTH, "k_proj": kv, "v_proj": kv, "o_proj": HIDDEN}
    shapes = {f"{AT}self_attn.{name}.weight": (n, HIDDEN) for name, n in rows.items()}
    biases = {f"{AT}self_attn.{name}.bias": (n,) for name, n in rows.items()}
    return {**shapes, **biases} if bias else shapes


W_PACK = {
    AT + "self_attn.W_pack.weight": (3 * WIDTH, HIDDEN),
    AT + "self_attn.o_proj.weight": (HIDDEN, WIDTH),
}
BAICHUAN = {**ENDS, **layers(LAYERS, **norms(), **W_PACK, **MLP)}
BAICHUAN_CONFIG = {
    **SIZES,
    "_from_model_config": True,
    "architectures": ["BaichuanForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_baichuan.BaichuanConfig"},
    "model_type": "baichuan",
    "model_max_length": 64,
    "pad_token_id": 0,
}
_GLM = "transformer.encoder.layers.{i}."
CHATGLM = {
    "transformer.embedding.word_embeddings.weight": (VOCAB, HIDDEN),
    "transformer.encoder.final_layernorm.weight": (HIDDEN,),
    "transformer.output_layer.weight": (VOCAB, HIDDEN),
    **layers(
        LAYERS,
        **{
            _GLM + "input_layernorm.weight": (HIDDEN,),
            _GLM + "post_attention_layernorm.weight": (HIDDEN,),
            _GLM + "self_attention.query_key_value.weight": (WIDTH + 2 * KV, HIDDEN),
            _GLM + "self_attention.query_key_value.bias": (WIDTH + 2 * KV,),
            _GLM + "self_attention.dense.weight": (HIDDEN, WIDTH),
            _GLM + "mlp.dense_h_to_4h.weight": (2 * FFN, HIDDEN),
            _GLM + "mlp.dense_4h_to_h.weight": (HIDDEN, FFN),
        },
    ),
}
CHATGLM_CONFIG = {
    "architectures": ["ChatGLMModel"],
    "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
    "model_type": "chatglm",
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "ffn_hidden_size": FFN,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "hidden_size": HIDDEN,
    "kv_channels": DIM,
    "layernorm_epsilon": 1e-5,
    "multi_query_attention": True,
    "multi_query_group_num": GROUPS,
    "num_attention_heads": HEADS,
    "num_layers": LAYERS,
    "original_rope": True,
    "padded_vocab_size": VOCAB,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 64,
    "use_cache": True,
    "torch_dtype": "float32",
    "transformers_version": "4.30.2",
    "tie_word_embeddings": False,
    "eos_token_id": [2, 3],
    "pad_token_id": 0,
}
INTERNLM_CONFIG = {
    **SIZES,
    "architectures": ["InternLMForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_internlm.InternLMConfig"},
    "model_type": "internlm",
    "bias": True,
    "max_position_embeddings": 16,
    "pad_token_id": 2,
}
_WQKV = WIDTH + 2 * KV
INTERNLM2_LAYER = {
    **norms("attention_norm", "ffn_norm"),
    AT + "attention.wqkv.weight": (_WQKV, HIDDEN),
    AT + "attention.wo.weight": (HIDDEN, WIDTH),
    AT + "feed_forward.w1.weight": (FFN, HIDDEN),
    AT + "feed_forward.w3.weight": (FFN, HIDDEN),
    AT + "feed_forward.w2.weight": (HIDDEN, FFN),
}
INTERNLM2_BIAS = {AT + "attention.wqkv.bias": (_WQKV,), AT + "attention.wo.bias": (HIDDEN,)}
INTERNLM2_ENDS = {
    "model.tok_embeddings.weight": (VOCAB, HIDDEN),
    "model.norm.weight": (HIDDEN,),
    "output.weight": (VOCAB, HIDDEN),
}
INTERNLM2_CONFIG = {
    **SIZES,
    "architectures": ["InternLM2ForCausalLM"],
    "attn_implementation": "eager",
    "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"},
    "model_type": "internlm2",
    "bias": False,
    # Shorter than the test's sequence, so that the scaling acts.
    "max_position_embeddings": 16,
    "num_key_value_heads": GROUPS,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "rope_theta": 1000000,
}
_QWEN = "transformer.h.{i}."
QWEN = {
    "transformer.wte.weight": (VOCAB, HIDDEN),
    "transformer.ln_f.weight": (HIDDEN,),
    "lm_head.weight": (VOCAB, HIDDEN),
    **layers(
        LAYERS,
        **{
            _QWEN + "ln_1.weight": (HIDDEN,),
            _QWEN + "ln_2.weight": (HIDDEN,),
            _QWEN + "attn.c_attn.weight": (3 * WIDTH, HIDDEN),
            _QWEN + "attn.c_attn.bias": (3 * WIDTH,),
            _QWEN + "attn.c_proj.weight": (HIDDEN, WIDTH),
            _QWEN + "mlp.w1.weight": (FFN, HIDDEN),
            _QWEN + "mlp.w2.weight": (FFN, HIDDEN),
            _QWEN + "mlp.c_proj.weight": (HIDDEN, FFN),
        },
    ),
}
QWEN_CONFIG = {
    "architectures": ["QWenLMHeadModel"],
    "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig"},
    "attn_dropout_prob": 0.0,
    "bf16": False,
    "emb_dropout_prob": 0.0,
    "fp16": False,
    "fp32": True,
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * FFN,
    "initializer_range": 0.02,
    "kv_channels": DIM,
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 64,
    "model_type": "qwen",
    "no_bias": True,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "onnx_safe": None,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    # Not shorter than the test's sequence: beyond it dynamic NTK and log-n would act.
    "seq_length": 32,
    "tie_word_embeddings": False,
    "tokenizer_type": "QWenTokenizer",
    "transformers_version": "4.32.0",
    "use_cache": True,
    "use_dynamic_ntk": True,
    "use_flash_attn": "auto",
    "use_logn_attn": True,
    "vocab_size": VOCAB,
}
AQUILA_CONFIG = {
    **SIZES,
    "architectures": ["AquilaForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_aquila.AquilaConfig"},
    "model_type": "aquila",
    "max_position_embeddings": 64,
    "num_key_value_heads": GROUPS,
    "pad_token_id": 0,
    "rope_theta": 20000.0,
    "rope_scaling": None,
}
YI_CONFIG = {
    **AQUILA_CONFIG,
    "architectures": ["YiForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_yi.YiConfig"},
    "model_type": "Yi",
    "rope_theta": 5000000.0,
}
MINICPM_CONFIG = {
    **{key: value for key, value in SIZES.items() if key != "tie_word_embeddings"},
    "_name_or_path": "openbmb/CPM-2B",
    "architectures": ["MiniCPMForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_minicpm.MiniCPMConfig"},
    "max_position_embeddings": 64,
    "num_key_value_heads": HEADS,
    "rope_scaling": None,
    "scale_emb": 12,
    "dim_model_base": 32,
    "scale_depth": 1.4,
}
INTERNLM = {**ENDS, **layers(LAYERS, **norms(), **attention(WIDTH, bias=True), **MLP)}
INTERNLM2 = {**INTERNLM2_ENDS, **layers(LAYERS, **INTERNLM2_LAYER)}
GROUPED = {**ENDS, **layers(LAYERS, **norms(), **attention(KV), **MLP)}
YI = {**ENDS, **layers(LAYERS, **norms("ln1", "ln2"), **attention(KV), **MLP)}
MINICPM = {**ENDS, **layers(LAYERS, **norms(), **attention(WIDTH), **MLP)}
