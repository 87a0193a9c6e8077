"""NF4: the paper's values, bitsandbytes' bits, and adapters that train on such a base."""

import math
from itertools import pairwise

import pytest
import torch

from ckpt_models import build_model
from fork_ranks import run_ranks
from live_tensors import live_tensors, storage_bytes
from llm_train.arch import parse as parse_arch
from llm_train.config import RunConfig
from llm_train.model import nf4
from llm_train.model.nf4 import (
    VALUES,
    Nf4Error,
    Nf4Tensor,
    Scales,
    dequantize,
    dynamic_map,
    quantize,
)
from llm_train.plan import make_plan
from llm_train.weights import open_source
from sft_data import make_chats, write_samples
from train_curves import each_run, go

CPU = torch.device("cpu")


def test_values_are_the_papers_quantiles():
    """Appendix E of arXiv 2305.14314: eight steps above 0 and seven below, of offset 0.9677083."""
    offset = 0.9677083
    above = torch.special.ndtri(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    wanted = torch.cat([below, torch.zeros(1, dtype=torch.float64), above]).sort().values
    wanted /= wanted.max()
    torch.testing.assert_close(torch.tensor(VALUES), wanted.float(), atol=1e-5, rtol=0)


def by_hand(weight):
    """A block after another, a weight after another, its scale as it is."""
    out = []
    for block in weight.flatten().split(64):
        scale = max(abs(x) for x in block.tolist())
        out += [
            scale * min(VALUES, key=lambda value, x=x: abs(x / scale - value))
            for x in block.tolist()
        ]
    return torch.tensor(out).view_as(weight)


@pytest.mark.parametrize("shape", [(8, 64), (3, 50)])
def test_restored_weights_are_the_nearest_values(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = quantize(weight, is_double=False)
    torch.testing.assert_close(found.restored(), by_hand(weight), atol=1e-6, rtol=0)
    # Scales in eight bits move a weight by less than a hundredth of the spread of its values.
    twice = quantize(weight, is_double=True)
    torch.testing.assert_close(twice.restored(), found.restored(), atol=0.02, rtol=0)
    assert not torch.equal(twice.restored(), found.restored())


def scales_by_hand(scales):
    """bitsandbytes' `quantize_4bit(compress_statistics=True)`: the mean off, blocks of 256, each
    nearest in `create_dynamic_map()`, whose decade i has 2^i values of each sign.
    """
    table = [0.0, 1.0]
    for i in range(7):
        edges = [0.1 + 0.9 * n / 2**i for n in range(2**i + 1)]
        middles = [(a + b) / 2 * 10.0 ** (i - 6) for a, b in pairwise(edges)]
        table += [*middles, *(-x for x in middles)]
    mean, out = math.fsum(scales) / len(scales), []
    for first in range(0, len(scales), 256):
        left = [x - mean for x in scales[first : first + 256]]
        wide = max(map(abs, left)) or 1.0
        out += [min(table, key=lambda v, x=x: abs(x / wide - v)) * wide + mean for x in left]
    return out


def twice_by_hand(weight):
    """Of codes by the scales as they are, restored by the quantised ones."""
    blocks = [block.tolist() for block in weight.float().flatten().split(64)]
    scales, out = [max(map(abs, block)) for block in blocks], []
    for block, scale, kept in zip(blocks, scales, scales_by_hand(scales), strict=True):
        out += [
            kept * min(VALUES, key=lambda value, x=x: abs(x / (scale or 1.0) - value))
            for x in block
        ]
    return torch.tensor(out, dtype=torch.float64).view_as(weight)


def drawn(*shape, seed=2):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Two rows of scales' blocks and a piece of a third, no size a multiple of 64.
HARD = {
    "odd": drawn(131, 257),
    "bf16": drawn(131, 257).bfloat16(),
    "huge": drawn(65, 67) * 1e37,
    "subnormal": drawn(65, 67) * 1e-40,
    "zero": torch.zeros(65, 67),
    "constant": torch.full((65, 67), -0.3),
    "zero blocks": torch.cat([torch.zeros(64, 64), drawn(64, 64)]),
    "outlier": drawn(64, 64).index_put((torch.tensor(3), torch.tensor(5)), torch.tensor(1e4)),
    "one": torch.tensor([[2.5]]),
}


@pytest.mark.parametrize("name", HARD)
def test_hard_weights_are_those_quantised_twice_by_hand(name):
    weight = HARD[name]
    found, wanted = quantize(weight, is_double=True).restored(), twice_by_hand(weight)
    assert found.dtype == weight.dtype
    rtol = 2**-8 if weight.dtype == torch.bfloat16 else 1e-5
    atol = 1e-6 * wanted.abs().max().item() + 1e-44
    torch.testing.assert_close(found.double(), wanted, atol=atol, rtol=rtol)


@pytest.mark.parametrize("is_double", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_entries_that_are_no_numbers_are_refused(bad, is_double):
    """They would spoil a block, or with scales that share a mean everything, in silence."""
    weight = drawn(70, 70)
    weight[3, 5] = weight[60, 60] = bad
    with pytest.raises(Nf4Error, match="2 of its 4900 entries are NaN or infinite"):
        quantize(weight, is_double=is_double)


def test_a_weight_that_cannot_be_quantised_is_named(tmp_path):
    model = build_model("qwen3", num_hidden_layers=2)
    model.model.layers[1].mlp.down_proj.weight.data[1, 2] = math.nan
    model.save_pretrained(tmp_path / "hf")
    document = {
        "stage": "sft",
        "model": {"load": str(tmp_path / "hf")},
        "data": {"train": [str(write_samples(tmp_path / "data", make_chats(8)))]},
        "train": {"max_steps": 1, "seq_length": 48, "global_batch_size": 8},
        "optimizer": {"lr": 1e-2},
        "lora": {"target_modules": ["linear_qkv"], "quantize": "nf4"},
        "save": {"path": str(tmp_path / "run")},
        "device": "cpu",
    }
    says = r"lora.quantize: decoder.layers.1.mlp.linear_fc2.weight: 1 of its"
    with pytest.raises(Exception, match=says):
        run_ranks(lambda _rank: list(each_run({"it": document}, lambda *_: None)), 1)


def test_the_map_of_scales_by_hand():
    """Seven decades, 1, 2, … 64 values of each sign in them; 0 and 1."""
    found = dynamic_map(CPU)
    assert len(found) == 256
    assert found.unique().numel() == 256
    assert found[-1] == 1.0
    assert (found == 0.0).sum() == 1
    assert sum((0.1 < x <= 0.999) for x in found.tolist()) == 64
    torch.testing.assert_close(found[found > 0].min().item(), 0.55e-6)


def test_a_part_at_a_time_has_the_bits_of_the_whole(monkeypatch):
    """Parts of two blocks, the last of them of less than one; a block is quantised on its own."""
    weight = torch.randn((7, 50), generator=torch.Generator().manual_seed(0))
    whole = quantize(weight, is_double=True)
    monkeypatch.setattr(nf4, "_AT_A_TIME", 2 * nf4.BLOCK)
    parts = quantize(weight, is_double=True)
    assert torch.equal(parts.packed, whole.packed)
    assert torch.equal(parts.scales.codes, whole.scales.codes)
    assert torch.equal(parts.restored(), whole.restored())
    torch.testing.assert_close(
        quantize(weight, is_double=False).restored(), by_hand(weight), atol=1e-6, rtol=0
    )


def test_bits_are_those_of_bitsandbytes():
    """Where it is installed, which it need not be."""
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(256, 192, generator=torch.Generator().manual_seed(1))
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    plain, scales = quantize(weight, is_double=False), state.absmax
    assert torch.equal(plain.packed, packed.flatten())
    torch.testing.assert_close(plain.restored(), functional.dequantize_4bit(packed, state))
    torch.testing.assert_close(plain.scales.values, scales)

    packed, state = functional.quantize_4bit(
        weight, blocksize=64, quant_type="nf4", compress_statistics=True
    )
    double = quantize(weight, is_double=True)
    torch.testing.assert_close(dynamic_map(CPU), functional.create_dynamic_map())
    theirs = Scales(state.state2.absmax, state.absmax.flatten(), state.offset)
    torch.testing.assert_close(
        dequantize(packed.flatten(), theirs, weight.shape, weight.dtype),
        functional.dequantize_4bit(packed, state),
    )
    # Its CPU search takes the other of two values that are all but equally near, 2 times of 768.
    apart = (double.scales.codes.int() - theirs.codes.int()).abs()
    assert apart.max() <= 1
    assert apart.sum() <= 8


def test_a_product_and_its_gradient_are_of_the_restored_weight_and_keep_four_bits():
    weight = quantize(torch.randn(32, 64), is_double=True)
    x = torch.randn(5, 64, requires_grad=True)
    saved = []

    def pack(tensor):
        saved.append(type(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = torch.nn.functional.linear(x, torch.nn.Parameter(weight, requires_grad=False))
    assert saved == [Nf4Tensor]
    torch.testing.assert_close(out, x @ weight.restored().t())
    out.sum().backward()
    torch.testing.assert_close(x.grad, weight.restored().sum(0).expand_as(x))
    assert weight.num_bytes == 32 * 64 // 2 + 32 + 4 + 4
    with pytest.raises(TypeError, match="an NF4 weight is frozen"):
        weight.mul_(2.0)


def test_adapters_train_on_a_base_in_nf4_as_on_its_restored_weights(tmp_path):
    """The same run of transformers' weights, quantised by us beforehand and kept as they are."""
    model = build_model("qwen3", num_hidden_layers=2)
    model.save_pretrained(tmp_path / "hf")
    data = write_samples(tmp_path / "data", make_chats(8))
    documents = {
        name: {
            "stage": "sft",
            "model": {"load": str(tmp_path / "hf")},
            "data": {"train": [str(data)]},
            "train": {"max_steps": 3, "seq_length": 48, "global_batch_size": 8},
            "optimizer": {"lr": 1e-2},
            "lora": {
                "target_modules": ["linear_qkv", "linear_fc2"],
                "rank": 4,
                "quantize": "nf4" if name == "nf4" else None,
            },
            "save": {"path": str(tmp_path / "run")},
            "recompute": {"kind": "full"},
            "device": "cpu",
        }
        for name in ("nf4", "restored", "plain")
    }

    def look(training, splits):
        chunk = training.chunks[0]
        if training.config.save.path.name == "run" and names.pop(0) == "restored":
            with torch.no_grad():
                for name, parameter in chunk.named_parameters():
                    if "linear_" in name and name.endswith(".weight") and parameter.dim() == 2:
                        quantized = quantize(parameter, is_double=True)
                        parameter.copy_(quantized.restored())
        curve = []

        class Log:
            def step(self, metrics):
                curve.append((metrics.loss, metrics.grad_norm))

        go(training, splits, Log())
        kinds = {type(p.data).__name__ for p in chunk.parameters()}
        return curve, kinds

    names = list(documents)
    found = run_ranks(lambda _rank: dict(each_run(documents, look)), 1)[0]
    assert found["nf4"][0] == [pytest.approx(one, rel=1e-5) for one in found["restored"][0]]
    assert found["nf4"][0][0] != pytest.approx(found["plain"][0][0], rel=1e-4)
    assert "Nf4Tensor" in found["nf4"][1]
    assert "Nf4Tensor" not in found["plain"][1]


def bytes_held():
    """By every tensor of this process."""
    tensors = live_tensors()
    plain = [one for one in tensors if not one.is_meta and not isinstance(one, Nf4Tensor)]
    parts = [part for one in tensors if isinstance(one, Nf4Tensor) for part in nf4_parts(one)]
    return storage_bytes(plain + parts)


def nf4_parts(one):
    return [one.packed, one.scales.values, one.scales.codes, one.scales.mean]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_never_more_than_one_weight_is_there_whole_while_a_base_is_read(precision, tmp_path):
    """As `plan` has it: the weights in four bits, and the one that is being quantised."""
    model = build_model("qwen3", num_hidden_layers=4, hidden_size=128, intermediate_size=512)
    model.save_pretrained(tmp_path / "hf")
    document = {
        "stage": "sft",
        "model": {"load": str(tmp_path / "hf")},
        "data": {"train": [str(write_samples(tmp_path / "data", make_chats(8)))]},
        "train": {
            "max_steps": 1,
            "seq_length": 48,
            "global_batch_size": 1,
            "precision": precision,
        },
        "optimizer": {"lr": 1e-2},
        "lora": {"target_modules": ["linear_qkv"], "rank": 1, "quantize": "nf4"},
        "save": {"path": str(tmp_path / "run")},
        "device": "cpu",
    }

    def rank(_rank):
        from llm_train.model.lora.quantized import QuantizedBase

        before, seen, put = bytes_held(), [], QuantizedBase.put

        def then_look(self, tensor, whole):
            put(self, tensor, whole)
            del whole
            seen.append(bytes_held() - before)

        QuantizedBase.put = then_look
        dict(each_run({"run": document}, lambda training, _: training))
        return seen

    (seen,) = run_ranks(rank, 1)
    arch = parse_arch(dict(open_source(tmp_path / "hf").arch), where="test")
    (planned,) = make_plan(RunConfig.model_validate(document), arch, 1).memory
    read_bytes = 4
    largest, tables = 2 * 512 * 128 * read_bytes, 64 * 1024
    assert max(seen) <= planned.weights + largest + tables
    # What whole weights take: far more than that.
    whole = {**document, "lora": {**document["lora"], "quantize": None}}
    (of_whole,) = make_plan(RunConfig.model_validate(whole), arch, 1).memory
    assert max(seen) < of_whole.weights * (0.5 if precision == "fp32" else 1.0)
