"""Logits and greedy text of the native decoder against transformers, or the authors' own code."""

import json

import pytest
import torch

from ckpt_zoo import CASES, Case
from llm_infer.kernels import TorchKernels
from llm_infer.model.steps import Part
from llm_infer.sampling import Sampling
from native_decoder import engine_of, logits_of, open_decoder, run

LOGITS_TOLERANCE = 1e-4
BY_ID = {case.id: case for case in CASES}
# One of each primitive; the whole zoo is slow.
PRIMITIVES = (
    "llama-biases",
    "llama-linear",
    "llama-llama3",
    "llama-mscale",
    "qwen3-windows",
    "gemma2",
    "phi3-long",
    "phi3-short",
    "glm-biases",
    "olmo2",
    "granite-biases",
    "hunyuan_v1_dense",
    "bloom-six",
    "gpt2-untied",
    "stablelm-half",
    "gpt_oss",
    "deepseek_v3",
    "deepseek_v32",
    "glm_moe_dsa-borrowing",
    "longcat_flash",
    "phimoe",
    "qwen2_moe",
    "hunyuan-large",
    "grok-1",
    "qwen3_next-mixed",
    "qwen3_5_moe_text",
    "nemotron_h-groups",
    "bamba-biases",
    "mamba2",
)


def check_logits(case, folder):
    """Logits in one step, and the same to the bit in steps that cut texts anywhere."""
    case.save(folder)
    longest = json.loads((folder / "config.json").read_text()).get("max_position_embeddings", 24)
    tokens = torch.randint(
        0, 250, (2, min(24, longest)), generator=torch.Generator().manual_seed(1)
    )
    decoder = open_decoder(folder)
    is_long = decoder.short_length is not None and tokens.shape[1] > decoder.short_length
    found = logits_of(decoder, tokens, is_long=is_long)
    difference = (found - case.expected_logits(folder, tokens)).abs().max().item()
    print(f"{case.id}: max logits difference {difference:.1e}")
    assert difference <= LOGITS_TOLERANCE
    assert torch.equal(logits_of(decoder, tokens, cuts=(7, 8, 9, 15), is_long=is_long), found)


@pytest.mark.parametrize("name", PRIMITIVES)
def test_logits_are_those_of_others_in_whatever_steps(name, tmp_path):
    check_logits(BY_ID[name], tmp_path / "hf")


# Last run 2026-11-27: 124 models and 117 texts, 3 min, difference 8.6e-5 (gated delta nets).
@pytest.mark.slow
@pytest.mark.parametrize("name", [case.id for case in CASES if case.id not in PRIMITIVES])
def test_logits_of_every_other_family_too(name, tmp_path):
    check_logits(BY_ID[name], tmp_path / "hf")


class CountingKernels(TorchKernels):
    """Plain torch, which notes of how many tokens it norms."""

    def __init__(self):
        self.counts = []

    def rms_norm(self, x, weight, *, eps, offset=0.0):
        self.counts.append(len(x))
        return super().rms_norm(x, weight, eps=eps, offset=offset)


@pytest.mark.parametrize(
    "name",
    ["qwen3-windows", "olmo2", "deepseek_v3", "longcat_flash", "qwen3_next-mixed", "bamba-biases"],
)
def test_the_last_layer_goes_on_with_the_wanted_tokens_alone(name, tmp_path):
    kernels = CountingKernels()
    decoder = open_decoder(BY_ID[name].save(tmp_path / "hf"), kernels=kernels)
    tokens = torch.randint(0, 250, (20,), generator=torch.Generator().manual_seed(1)).tolist()

    def logits(*, rows):
        runner = decoder.runner(num_blocks=2, block_tokens=16)
        part = Part(tokens=tokens, first=0, blocks=(0, 1), wants_logits=True)
        return runner.run([part], rows=rows)

    whole = logits(rows=range(20))
    assert set(kernels.counts) == {20}
    kernels.counts.clear()
    assert torch.equal(logits(rows=(3, 19)), whole[[3, 19]])
    # Before its feed-forward, or behind it, and at last.
    assert kernels.counts[-2:] == [2, 2]
    assert kernels.counts.index(2) > len(kernels.counts) / 2
    assert logits(rows=()).shape == (0, whole.shape[1])


def check_greedy(case, folder):
    """64 tokens after a short prompt."""
    import transformers

    settings = {**case.config}
    for key in ("max_position_embeddings", "n_positions"):
        if key in settings and settings[key] >= 64:
            settings[key] = 128
    Case(case.family, settings).save(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    context = getattr(model.config, "max_position_embeddings", None) or 128
    count = min(64, context - 6)
    prompt = [5, 17, 99, 3, 240]
    whole = model.generate(
        torch.tensor([prompt]),
        do_sample=False,
        max_new_tokens=count,
        eos_token_id=None,
        pad_token_id=0,
    )
    (found,) = run(engine_of(open_decoder(folder)), [(prompt, Sampling(max_new_tokens=count))])
    assert found == whole[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    "name", ["mistral", "gemma2", "phi3-long", "mixtral-window", "qwen3_next-mixed", "bamba"]
)
def test_greedy_text_is_that_of_transformers(name, tmp_path):
    check_greedy(BY_ID[name], tmp_path / "hf")


# Last run: see the test above; families that transformers ships.
@pytest.mark.slow
@pytest.mark.parametrize("name", [case.id for case in CASES if case.write is None])
def test_greedy_text_of_every_family_is_that_of_transformers(name, tmp_path):
    check_greedy(BY_ID[name], tmp_path / "hf")
