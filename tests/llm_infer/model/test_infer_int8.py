"""8-bit weights: logits are those of a model whose weights were rounded to 8 bits by hand."""

import ctypes
import gc
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckpt_zoo import CASES, Case
from llm_infer.model.int8 import Int8Linear, largest_digit, quantized, reason_against
from llm_infer.sampling import Sampling
from native_decoder import engine_of, logits_of, open_decoder, run

BY_ID = {case.id: case for case in CASES}
# Weights that keep their numbers, by a part of their Hugging Face names.
KEPT = ("router", ".gate.weight", "shared_expert_gate", "wpe", "conv1d", "bias", "indexer")
# Stored as [inputs, outputs], as opposed to all others: family and part of a name.
TRANSPOSED = (("gpt2", ".h."), ("gpt_oss", "experts"))
# Rounding its weights moves these logits by 80 % of their size; float32 alone is 2e-5 off.
TOLERANCES = {"qwen3_next": 1e-3}
FAMILIES = (
    "gemma2",
    "gpt2-untied",
    "gpt_oss",
    "deepseek_v3",
    "deepseek_v32",
    "longcat_flash",
    "qwen3_next",
)


def rounded(weight, dim):
    """Symmetric, a scale for each output channel: largest / 127."""
    scale = weight.abs().amax(dim, keepdim=True) / 127
    return torch.round(weight / scale) * scale


def round_weights(case, folder):
    """Write the folder again, its large weights rounded."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    for name, weight in weights.items():
        if weight.dim() >= 2 and not any(part in name for part in KEPT):
            is_transposed = any(f == case.family and part in name for f, part in TRANSPOSED)
            weights[name] = rounded(weight, -2 if is_transposed else -1).contiguous()
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers_with_rounded_weights(name, tmp_path):
    case = BY_ID[name]
    folder = case.save(tmp_path / "hf")
    tokens = torch.randint(0, 250, (2, 24), generator=torch.Generator().manual_seed(1))
    decoder = open_decoder(folder, quantization="int8")
    found = logits_of(decoder, tokens)
    # In parts that end anywhere: the same to the bit.
    assert torch.equal(logits_of(decoder, tokens, cuts=(7, 8, 9, 15)), found)
    full = case.expected_logits(folder, tokens)
    round_weights(case, folder)
    difference = (found - case.expected_logits(folder, tokens)).abs().max().item()
    print(f"{name}: {difference:.1e}; to full weights {(found - full).abs().max().item():.1e}")
    assert difference <= TOLERANCES.get(name, 1e-4)
    assert (found - full).abs().max() > 1e-3


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("inner", "outer"), [(768, 2048), (3072, 96), (33, 7), (5, 1), (1, 5)])
def test_a_row_is_the_product_and_stays_the_same(inner, outer, threads):
    weight, bias, x = torch.randn(outer, inner), torch.randn(outer), torch.randn(600, inner)
    x[1] *= 1e-20
    x[2, 0] = 1e4
    x[3] = 0
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        linear = Int8Linear(weight, bias)
        whole = linear(x)
        for count in (0, 1, 2, 3, 5, 16, 17, 100, 257):
            assert torch.equal(linear(x[7 : 7 + count]), whole[7 : 7 + count]), count
    finally:
        torch.set_num_threads(before)
    found, exact = Int8Linear(weight, None)(x), x.double() @ rounded(weight, -1).double().T
    # Half a unit of the last digit, as a part of the row's largest number, and float32's rounding.
    digit = largest_digit()
    part = 0.5 / digit / (2 * digit) ** 2 + 2**-22
    most = x.abs().amax(1, keepdim=True) * weight.abs().sum(1) * part
    assert ((found - exact).abs() <= most).all()
    assert torch.equal(whole, found + bias)


def test_integer_products_are_exact_at_the_largest_codes():
    """A CPU that cuts sums of two products at 16 bits shows it here, if digits are too large.

    What is left is float32's rounding of the digits' scale.
    """
    near = partial(torch.testing.assert_close, rtol=2**-22, atol=0.0)
    signs = torch.where(torch.rand(8, 512) < 0.5, -1.0, 1.0)
    x = torch.where(torch.rand(40, 512) < 0.5, -1.0, 1.0)
    near(Int8Linear(127 * signs, None)(x), 127 * (x @ signs.T))
    ones = torch.ones(8, 512)
    near(Int8Linear(127 * ones, None)(ones), 127 * 512 * torch.ones(8, 8))


def test_codes_and_scales():
    codes, scales = quantized(torch.tensor([[1.27, -0.64, 0.004], [0.0, 0.0, 0.0], [-254, 1, 3]]))
    assert codes.tolist() == [[127, -64, 0], [0, 0, 0], [-127, 0, 2]]
    assert scales.tolist() == pytest.approx([0.01, 1.0, 2.0])


def status_bytes(key):
    """A line of the kernel's account of this process, as bytes."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) << 10


def test_loading_takes_little_more_than_a_quarter_of_the_weights_memory(tmp_path):
    sizes = {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 10,
        "num_attention_heads": 8,
        "vocab_size": 1000,
    }
    folder = Case("llama", sizes).save(tmp_path / "hf")
    weights_bytes = (folder / "model.safetensors").stat().st_size
    gc.collect()
    trim = ctypes.CDLL("libc.so.6").malloc_trim
    trim(0)  # so that what was freed before is not used again unseen
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    decoder = open_decoder(folder, quantization="int8")
    peak = status_bytes("VmHWM") - before
    trim(0)
    held = status_bytes("VmRSS") - before
    print(f"held {held / weights_bytes:.2f}, peak {peak / weights_bytes:.2f}")
    assert held < 0.4 * weights_bytes
    # malloc keeps up to about 60 MB of what was freed, whatever the size of the model.
    assert peak < 0.8 * weights_bytes
    assert decoder.place == "cpu, int8 weights"


def test_greedy_tokens_are_the_same_alone_and_in_a_batch(tmp_path):
    decoder = open_decoder(BY_ID["qwen2_moe"].save(tmp_path / "hf"), quantization="int8")
    requests = [([3 + n, 5, 7 * n, 11][: n + 1], Sampling(max_new_tokens=12)) for n in range(6)]
    alone = [run(engine_of(decoder), [request])[0] for request in requests]
    assert run(engine_of(decoder), requests) == alone


def test_another_device_is_refused():
    said = reason_against(torch.device("meta"))
    assert said == "8-bit weights run on a CPU, found device meta; use --device cpu"
    assert reason_against(torch.device("cpu")) is None
