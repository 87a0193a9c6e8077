"""Tiny random Hugging Face folders with a tokenizer trained on the spot."""

import json
from pathlib import Path
from typing import Literal

Family = Literal["llama", "qwen3"]

# Text of several scripts and an emoji, so that characters of two to four bytes occur.
TEXT = """def read(path):
    with open(path) as file:
        return file.read()

Grüße aus Köln, café au lait. 你好,世界。 Привет, мир. 🙂 naïve façade
The quick brown fox jumps over the lazy dog; 0123456789.
"""
END = "<|end|>"


def make_tokenizer(folder: Path, *, vocab_size: int = 320) -> None:
    """A byte-level BPE tokenizer, saved as transformers reads it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([TEXT] * 3, trainer)
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END).save_pretrained(folder)


def make_model(
    folder: Path, family: Family, *, context: int = 32, seed: int = 0, spread: float = 0.3
) -> Path:
    """Model and tokenizer; `spread` is wide enough that the logits differ clearly."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

    make_tokenizer(folder)
    shape = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "initializer_range": spread,
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    config = Qwen3Config(**shape, head_dim=8) if family == "qwen3" else LlamaConfig(**shape)
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def edit_json(path: Path, **changes: object) -> None:
    """Change keys of a JSON object in a file; None removes a key."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))
