"""Megatron models built from arch.json give transformers' logits and losses."""

import pytest
import torch

from fork_ranks import run_ranks

BATCH, TOKENS = 2, 48


def _llama(**changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": 251,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.1,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))


def _qwen3(**changes):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    settings = {
        "vocab_size": 251,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 128,
        "initializer_range": 0.1,
    }
    return Qwen3ForCausalLM(Qwen3Config(**{**settings, **changes}))


LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS = {
    "llama": lambda: _llama(),
    "llama-tied": lambda: _llama(tie_word_embeddings=True),
    "llama-attention-bias": lambda: _llama(attention_bias=True),
    "llama-mlp-bias": lambda: _llama(mlp_bias=True),
    "llama-llama3-rope": lambda: _llama(rope_parameters=LLAMA3_SCALING),
    "qwen3": lambda: _qwen3(),
    "qwen3-tied": lambda: _qwen3(tie_word_embeddings=True),
    "qwen3-attention-bias": lambda: _qwen3(attention_bias=True),
}


@pytest.fixture
def reference(request, tmp_path):
    """A saved transformers model with every weight random, its tokens, logits and loss."""
    torch.manual_seed(0)
    model = MODELS[request.param]().eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases are born 1 and 0, which proves little
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "hf")
    tokens = torch.randint(0, 251, (BATCH, TOKENS + 1))
    with torch.no_grad():
        logits = model(tokens[:, :-1]).logits
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), tokens[:, 1:], reduction="none"
    )
    return tmp_path / "hf", tokens, logits, losses


def megatron_outputs(folder, tokens, *, tp=1):
    """Logits [B, T, V] and token losses [B, T] of the model llm-train builds from `folder`."""

    def rank(_rank):
        from llm_train.config import ParallelConfig
        from llm_train.edge.device import DeviceKind, device_session
        from llm_train.edge.groups import model_parallel
        from llm_train.weights import arch_of, open_source

        source = open_source(folder)
        arch = arch_of(source, where=folder)
        parallel = ParallelConfig(tp=tp)
        with (
            device_session(DeviceKind.CPU),
            model_parallel(parallel, seed=1),
            torch.no_grad(),
        ):
            from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

            from llm_train.model.build import build_chunks, padded_vocab_size, transformer_config
            from llm_train.model.fill import fill_from_source

            config = transformer_config(arch, parallel, dtype=torch.float32)
            (chunk,) = build_chunks(arch, config)
            fill_from_source([chunk], source, padded_rows=padded_vocab_size(arch, tp))
            inputs, labels = tokens[:, :-1], tokens[:, 1:].contiguous()
            positions = torch.arange(TOKENS)[None].expand(BATCH, -1)
            logits = gather_from_tensor_model_parallel_region(chunk(inputs, positions, None))
            losses = chunk(inputs, positions, None, labels=labels)
            return logits[..., : arch.vocab_size].clone(), losses.clone()

    return run_ranks(rank, tp)[0]


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("reference", MODELS, indirect=True)
def test_megatron_logits_equal_transformers(reference, tp, record_property):
    folder, tokens, logits, losses = reference
    found_logits, found_losses = megatron_outputs(folder, tokens, tp=tp)
    difference = (found_logits - logits).abs().max().item()
    record_property("max_logit_difference", difference)
    print(f"max logit difference {difference:.2e}, logits up to {logits.abs().max():.1f}")
    assert difference <= 1e-4
    torch.testing.assert_close(found_losses, losses, atol=1e-5, rtol=1e-5)
