"""The model of the golden Megatron checkpoints, and how they were made.

`python tests/support/ckpt_golden.py` writes them anew (only when the format changes).
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch

CONTRACTS = Path(__file__).parents[1] / "contracts"
CONFIG = {
    "model_type": "qwen3",
    "vocab_size": 10,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 2,
    "max_position_embeddings": 16,
    "tie_word_embeddings": False,
}


def expected_tensors():
    """Hugging Face name → tensor, by the formula of SPEC.md."""
    layer = {
        "input_layernorm.weight": (8,),
        "mlp.down_proj.weight": (8, 6),
        "mlp.gate_proj.weight": (6, 8),
        "mlp.up_proj.weight": (6, 8),
        "post_attention_layernorm.weight": (8,),
        "self_attn.k_norm.weight": (2,),
        "self_attn.k_proj.weight": (4, 8),
        "self_attn.o_proj.weight": (8, 8),
        "self_attn.q_norm.weight": (2,),
        "self_attn.q_proj.weight": (8, 8),
        "self_attn.v_proj.weight": (4, 8),
    }
    shapes = {f"model.layers.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": (10, 8), "lm_head.weight": (10, 8)}
    shapes["model.norm.weight"] = (8,)
    return {
        name: n + torch.arange(torch.Size(shapes[name]).numel()).reshape(shapes[name]) / 1024
        for n, name in enumerate(sorted(shapes))
    }


def write_hf(folder):
    """The model as a Hugging Face folder, by the safetensors library."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(expected_tensors(), folder / "model.safetensors")
    return folder


def main():
    """Write the golden folders."""
    from click.testing import CliRunner

    from llm_ckpt.cli import main as llm_ckpt

    with tempfile.TemporaryDirectory() as temporary:
        source = write_hf(Path(temporary) / "hf")
        padding = ("--make-vocab-size-divisible-by", "1")
        for place, options in {
            "megatron_v1/golden": ("--tp", "2", "--pp", "2", *padding),
            "megatron_v2/golden/stacked": ("--layout", "v2"),
            "megatron_v2/golden/per_layer": ("--layout", "v2", "--per-layer-keys"),
        }.items():
            out = CONTRACTS / place
            shutil.rmtree(out, ignore_errors=True)
            args = ["convert", str(source), "--output", str(out), "--to", "mcore", *options]
            result = CliRunner().invoke(llm_ckpt, args)
            assert result.exit_code == 0, result.output
            (out / ".llm-ckpt.json").unlink()


if __name__ == "__main__":
    main()
