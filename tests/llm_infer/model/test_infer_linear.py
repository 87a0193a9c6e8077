"""Rows of products do not depend on how many there are, to the bit; in single and in threads."""

import pytest
import torch
from torch.nn import functional as F

from llm_infer.compiled.build import CannotCompileError
from llm_infer.compiled.kernels import CompiledKernels
from llm_infer.compiled.library import library
from llm_infer.model.attend import Attend, Scores
from llm_infer.model.cache import Pool, Step, segments
from llm_infer.model.linear import PackedLinear, TiledLinear, can_pack, multiply
from llm_infer.model.rowwise import by_row
from llm_infer.model.swiglu import PackedSwiglu

COUNTS = (1, 2, 3, 5, 8, 15, 16, 17, 33, 64, 65, 100)
SHAPES = [(1024, 3072), (3072, 1024), (96, 64), (40, 8), (33, 7), (100, 1), (1, 5)]
# oneDNN shares the products of a row between two threads here, for one row or for many.
SHARED = [(8192, 512), (2809, 310), (1068, 173)]
KINDS = [
    *((kind, *shape) for kind in (PackedLinear, TiledLinear, "compiled") for shape in SHAPES),
    *((kind, *shape) for kind in (PackedLinear, "compiled") for shape in SHARED),
]


def made(kind, gated=False):
    """What makes a layer of a weight and a bias."""
    if kind != "compiled":
        return kind
    functions = library()
    if isinstance(functions, CannotCompileError):
        pytest.skip(str(functions))
    kernels = CompiledKernels(functions)
    return kernels.swiglu_linear if gated else kernels.linear


@pytest.fixture(params=[1, 2], ids=["one-thread", "two-threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(("kind", "inner", "outer"), KINDS)
def test_a_row_of_a_linear_layer_stays_the_same(kind, inner, outer, threads):
    weight, bias = torch.randn(outer, inner), torch.randn(outer)
    linear, x = made(kind)(weight, bias), torch.randn(530, inner)
    whole = linear(x)
    expected = F.linear(x.double(), weight.double(), bias.double())
    assert torch.allclose(whole.double(), expected, atol=2e-3, rtol=1e-5)
    for count in (*COUNTS, 130, 512):
        assert torch.equal(linear(x[:count]), whole[:count]), count
        assert torch.equal(linear(x[7 : 7 + count]), whole[7 : 7 + count]), count


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cpu_that_cannot_pack_two_bytes_has_tiles_of_them(dtype):
    weight, x = torch.randn(96, 40).to(dtype), torch.randn(30, 40).to(dtype)
    whole = TiledLinear(weight, None)(x)
    assert whole.dtype == dtype
    assert torch.allclose(whole.double(), x.double() @ weight.double().T, rtol=2e-2, atol=0.2)
    if can_pack(dtype):
        assert torch.allclose(PackedLinear(weight, None)(x), whole, rtol=2e-2, atol=0.2)


@pytest.mark.parametrize("kind", [PackedSwiglu, "compiled"])
@pytest.mark.parametrize(("inner", "outer"), [*SHAPES, *SHARED])
def test_a_row_of_a_gated_layer_is_that_of_torch_and_stays_the_same(kind, inner, outer, threads):
    weight, bias = torch.randn(2 * outer, inner), torch.randn(2 * outer)
    layer, x = made(kind, gated=True)(weight, bias), torch.randn(130, inner) / inner**0.5
    whole = layer(x)
    gate, up = F.linear(x.double(), weight.double(), bias.double()).chunk(2, dim=1)
    assert torch.allclose(whole.double(), F.silu(gate) * up, atol=1e-4, rtol=1e-5)
    for count in COUNTS:
        assert torch.equal(layer(x[:count]), whole[:count]), count
        assert torch.equal(layer(x[7 : 7 + count]), whole[7 : 7 + count]), count


@pytest.mark.parametrize(("inner", "outer"), [(128, 512), (512, 128), (16, 16)])
def test_a_row_of_a_batched_product_stays_the_same(inner, outer, threads):
    x, w = torch.randn(4, 200, inner), torch.randn(4, inner, outer)
    whole = multiply(x, w)
    assert torch.allclose(whole.double(), x.double() @ w.double(), atol=1e-3)
    for count in COUNTS:
        assert torch.equal(multiply(x[:, 3 : 3 + count], w), whole[:, 3 : 3 + count]), count


@pytest.mark.parametrize("size", [7, 64, 1000])
def test_a_row_of_a_function_of_numbers_stays_the_same(size, threads):
    x = torch.randn(100, size)
    for function in (F.silu, F.gelu, torch.tanh, torch.sigmoid):
        whole = by_row(function, x)
        assert torch.allclose(whole, function(x), atol=1e-6)
        for count in COUNTS:
            part = x[50 : 50 + count] if count <= 50 else x[:count]
            wanted = whole[50 : 50 + count] if count <= 50 else whole[:count]
            assert torch.equal(by_row(function, part), wanted)


@pytest.mark.parametrize("window", [None, 70])
# Beyond 2048 keys another kernel computes.
@pytest.mark.parametrize("length", [100, 2300])
def test_attention_is_that_of_torch_and_the_same_for_one_token_and_for_many(
    length, window, threads, kernels
):
    groups, queries, dim, size = 2, 2, 32, 64
    q, k, v = (torch.randn(length, groups, n, dim) for n in (queries, 1, 1))
    slots = -(-length // size) * size
    pool = Pool(torch.zeros(groups, slots, dim), torch.zeros(groups, slots, dim), dim)
    pool.write(torch.arange(length), k[:, :, 0], v[:, :, 0])
    attend = Attend(Scores(scale=0.2, window=window), kernels, queries=queries, block_tokens=size)
    blocks = list(range(slots // size))

    def run(first, stop):
        step = Step(
            tokens=torch.empty(0),
            positions=torch.empty(0),
            slots=torch.empty(0),
            variants=None,
            segments=tuple(segments(0, first, stop, blocks, size)),
            last_rows=torch.empty(0),
            block_tokens=size,
        )
        return attend(q[first:stop], pool, step)

    whole = run(0, length)
    distance = torch.arange(length)[:, None] - torch.arange(length)
    seen = (distance >= 0) & (distance < (window or length))
    heads = [part.permute(1, 2, 0, 3).flatten(0, 1) for part in (q, k, v)]
    expected = F.scaled_dot_product_attention(
        heads[0], *(part.repeat_interleave(queries, 0) for part in heads[1:]), seen, scale=0.2
    )
    expected = expected.unflatten(0, (groups, queries)).permute(2, 0, 1, 3)
    assert torch.allclose(whole, expected, atol=1e-5)
    for first, stop in ((length - 1, length), (63, 65), (64, 65), (10, 31), (length - 40, length)):
        assert torch.equal(run(first, stop), whole[first:stop]), (first, stop)


def test_scattered_blocks_give_what_a_run_gives():
    pool_keys, size = torch.randn(2, 6 * 64, 16), 64
    order = [4, 1, 5, 0]
    gathered = torch.cat([pool_keys[:, b * size : (b + 1) * size] for b in order], dim=1)
    (segment,) = segments(0, 200, 201, order, size)
    step = Step(
        tokens=torch.empty(0),
        positions=torch.empty(0),
        slots=torch.empty(0),
        variants=None,
        segments=(segment,),
        last_rows=torch.empty(0),
        block_tokens=size,
    )
    assert torch.equal(step.keys_of(None)[0].of(pool_keys), gathered)
    # A window of 65 from the block's first token on reaches one block back.
    assert torch.equal(step.keys_of(65)[0].of(pool_keys), gathered[:, 2 * size :])
