"""FP8 and MXFP4 sources against transformers' own dequantisation and a calculation by hand."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from ckpt_models import read_tensors, save_model
from llm_ckpt.errors import ArchError, FormatError
from llm_ckpt.formats.hf import read_folder
from llm_ckpt.formats.quantized import dequantized
from llm_ckpt.formats.slab import Files
from llm_ckpt.layout import Box, whole
from llm_ckpt.source import open_source

BF16 = {"torch_dtype": "bfloat16"}


def read(folder, name, box=None, config=BF16):
    stored = dequantized(read_folder(folder), config, where="test")[name]
    box = whole(stored.shape) if box is None else box
    out = torch.full(box.shape, float("nan"), dtype=stored.dtype)
    stored.read(Files(), box, out)
    return out


def fp8_pair(rows, columns, block=(128, 128)):
    """Random float8 values and one factor for each (possibly partial) block."""
    values = torch.randn(rows, columns).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-rows // block[0]), -(-columns // block[1])) + 0.01
    return values, scales


def by_hand(values, scales, block=(128, 128)):
    rows, columns = values.shape
    factors = torch.kron(scales, torch.ones(block))[:rows, :columns]
    return (values.float() * factors).to(torch.bfloat16)


@pytest.mark.parametrize("shape", [(256, 384), (130, 70), (576, 128)])
def test_fp8_blocks_are_values_times_the_factor_of_their_block(tmp_path, shape):
    values, scales = fp8_pair(*shape)
    save_file({"w": values, "w_scale_inv": scales}, tmp_path / "model.safetensors")
    assert torch.equal(read(tmp_path, "w"), by_hand(values, scales))
    if not (shape[0] % 128 or shape[1] % 128):  # where transformers can
        wanted = Fp8Dequantize(None)._dequantize_one(values, scales, torch.bfloat16)
        assert torch.equal(read(tmp_path, "w"), wanted)


def test_any_box_of_an_fp8_matrix_is_that_part_of_the_whole(tmp_path):
    values, scales = fp8_pair(300, 260)
    save_file({"w": values, "w_scale_inv": scales}, tmp_path / "model.safetensors")
    whole_matrix = read(tmp_path, "w")
    for start, stop in (((0, 0), (1, 1)), ((127, 3), (129, 259)), ((5, 130), (300, 131))):
        part = read(tmp_path, "w", Box(start, stop))
        assert torch.equal(part, whole_matrix[start[0] : stop[0], start[1] : stop[1]])


def test_one_factor_for_a_whole_matrix(tmp_path):
    values, scale = torch.randn(200, 70).to(torch.float8_e4m3fn), torch.tensor([0.37])
    save_file({"w": values, "w_scale_inv": scale}, tmp_path / "model.safetensors")
    assert torch.equal(read(tmp_path, "w"), (values.float() * scale).to(torch.bfloat16))


def test_mxfp4_is_what_transformers_makes_of_it(tmp_path):
    blocks = torch.randint(0, 256, (3, 10, 2, 16), dtype=torch.uint8)
    scales = torch.randint(110, 140, (3, 10, 2), dtype=torch.uint8)
    save_file({"w_blocks": blocks, "w_scales": scales}, tmp_path / "model.safetensors")
    wanted = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    stored = dequantized(read_folder(tmp_path), BF16, where="test")["w"]
    assert stored.shape == tuple(wanted.shape) == (3, 64, 10)
    for expert in range(3):
        matrix = stored.entry(expert)
        out = torch.empty(matrix.shape, dtype=torch.bfloat16)
        matrix.read(Files(), whole(matrix.shape), out)
        assert torch.equal(out, wanted[expert])
        box = Box((31, 2), (50, 9))
        part = torch.empty(box.shape, dtype=torch.bfloat16)
        matrix.read(Files(), box, part)
        assert torch.equal(part, wanted[expert][31:50, 2:9])


def test_the_first_bytes_of_mxfp4_by_hand(tmp_path):
    """0x21: low half 1 → 0.5, high half 2 → 1.0; 0xF9: 9 → -0.5, 15 → -6.0; scale 129 → times 4."""
    blocks = torch.zeros(1, 1, 1, 16, dtype=torch.uint8)
    blocks[0, 0, 0, :2] = torch.tensor([0x21, 0xF9], dtype=torch.uint8)
    scales = torch.full((1, 1, 1), 129, dtype=torch.uint8)
    save_file({"w_blocks": blocks, "w_scales": scales}, tmp_path / "model.safetensors")
    matrix = dequantized(read_folder(tmp_path), BF16, where="test")["w"].entry(0)
    out = torch.empty(matrix.shape, dtype=torch.bfloat16)
    matrix.read(Files(), whole(matrix.shape), out)
    assert out[:4, 0].tolist() == [2.0, 4.0, -2.0, -24.0]


@pytest.fixture
def fp8_folder(tmp_path):
    """A bf16 model whose projections are replaced by float8, and the model they stand for."""
    save_model(tmp_path / "bf16", "qwen3", dtype=torch.bfloat16, hidden_size=192)
    tensors, plain = {}, {}
    for name, tensor in load_file(tmp_path / "bf16/model.safetensors").items():
        tensors[name] = plain[name] = tensor
        if name.endswith("_proj.weight"):
            values, scales = fp8_pair(*tensor.shape)
            tensors |= {name: values, f"{name}_scale_inv": scales}
            plain[name] = by_hand(values, scales)
    (tmp_path / "fp8").mkdir()
    save_file(tensors, tmp_path / "fp8/model.safetensors")
    config = json.loads((tmp_path / "bf16/config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "fp8/config.json").write_text(json.dumps(config))
    return tmp_path / "fp8", plain


@pytest.mark.parametrize("layout", ["hf", "v1", "v2"])
def test_an_fp8_folder_converts_to_the_model_it_stands_for(fp8_folder, convert, tmp_path, layout):
    folder, plain = fp8_folder
    convert(folder, tmp_path / "out", layout, **({"tp": 2, "pp": 2} if layout == "v1" else {}))
    convert(tmp_path / "out", tmp_path / "hf", "hf")
    found = read_tensors(tmp_path / "hf")
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())
    written = json.loads((tmp_path / "hf/config.json").read_text())
    assert "quantization_config" not in written
    assert written["dtype"] == "bfloat16"


def test_a_rank_reads_its_own_piece_of_a_quantised_matrix(fp8_folder):
    with open_source(fp8_folder[0]) as source:
        name = "decoder.layers.1.mlp.linear_fc2.weight"
        pieces = [source.read(name, (rank, 2)) for rank in (0, 1)]
        assert torch.equal(torch.cat(pieces, dim=1), source.read(name))


def test_values_without_factors_are_refused(fp8_folder):
    folder = fp8_folder[0]
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(
        {k: v for k, v in tensors.items() if k != f"{name}_scale_inv"}, folder / "model.safetensors"
    )
    with pytest.raises(FormatError, match=f"{name} is stored without {name}_scale_inv"):
        open_source(folder)


def test_factors_of_another_block_size_are_refused(fp8_folder):
    folder = fp8_folder[0]
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = [64, 64]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        FormatError, match=r"_scale_inv has shape .*, want .* in blocks of \[64, 64\]"
    ):
        open_source(folder)


def test_an_unknown_quantisation_is_refused_with_the_known_ones(fp8_folder):
    folder = fp8_folder[0]
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "awq"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ArchError, match=r"quant_method 'awq' cannot be read, want one of fp8, mxfp4"
    ):
        open_source(folder)
