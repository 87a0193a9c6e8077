"""Products of many experts are those of one at a time; capacities keep whom they say."""

import pytest
import torch

from llm_train.config import DropPolicy
from llm_train.model.grouped import (
    GROUPED_MM,
    PADDED_BMM,
    grouped_linear,
    one_by_one,
    products_for,
)
from llm_train.model.routing import drop_tokens

WAYS = {
    "one by one": (torch.float32, one_by_one, 1e-5),
    "padded": (torch.float32, lambda *args: grouped_linear(PADDED_BMM, *args), 1e-5),
    # Sums of some ten products, rounded to 8 bits.
    "grouped": (torch.bfloat16, lambda *args: grouped_linear(GROUPED_MM, *args), 0.1),
}
COUNTS = {"ragged": [5, 0, 3, 9], "nothing": [0, 0, 0, 0]}


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_values_and_gradients_of_plain_products(way, counts):
    dtype, multiply, tolerance = WAYS[way]
    random = torch.Generator().manual_seed(0)
    tokens = torch.randn(sum(COUNTS[counts]), 16, generator=random).to(dtype).requires_grad_()
    weights = [torch.randn(24, 16, generator=random).to(dtype).requires_grad_() for _ in range(4)]
    grad = torch.randn(len(tokens), 24, generator=random).to(dtype)
    out = multiply(tokens, weights, COUNTS[counts])
    found = torch.autograd.grad(out, [tokens, *weights], grad)

    start = 0
    for weight, of_weight, count in zip(weights, found[1:], COUNTS[counts], strict=True):
        mine = slice(start, start + count)
        x, w, g = (one.detach().double() for one in (tokens[mine], weight, grad[mine]))
        torch.testing.assert_close(out[mine].double(), x @ w.T, atol=tolerance, rtol=0)
        torch.testing.assert_close(found[0][mine].double(), g @ w, atol=tolerance, rtol=0)
        torch.testing.assert_close(of_weight.double(), g.T @ x, atol=tolerance, rtol=0)
        start += count


def test_frozen_weights_get_no_gradient():
    tokens = torch.randn(4, 8, requires_grad=True)
    weights = [torch.randn(8, 8) for _ in range(2)]
    grouped_linear(PADDED_BMM, tokens, weights, [1, 3]).sum().backward()
    assert tokens.grad is not None
    assert all(weight.grad is None for weight in weights)


def test_torchs_grouped_product_serves_bf16_on_cpu_and_cuda_alone():
    assert products_for(torch.bfloat16, "cuda") is GROUPED_MM
    assert products_for(torch.bfloat16, "npu") is PADDED_BMM
    assert products_for(torch.float32, "cuda") is PADDED_BMM


CHOSEN = [[1, 0], [1, 1], [1, 0], [0, 1]]
WEIGHTS = [[0.5, 0.0], [0.1, 0.9], [0.4, 0.0], [0.0, 1.0]]
KEPT = {
    ("probs", 2): [[1, 0], [0, 1], [1, 0], [0, 1]],
    ("position", 2): [[1, 0], [1, 1], [0, 0], [0, 1]],
    ("position", 9): CHOSEN,
}


@pytest.mark.parametrize(("policy", "capacity"), KEPT)
def test_an_expert_keeps_its_best_or_its_first_tokens(policy, capacity):
    chosen, weights = torch.tensor(CHOSEN, dtype=torch.bool), torch.tensor(WEIGHTS)
    wanted = torch.tensor(KEPT[policy, capacity], dtype=torch.bool)
    drop = {"capacity": capacity, "policy": DropPolicy(policy)}
    found, kept = drop_tokens(weights, chosen, is_filled_up=False, **drop)
    assert torch.equal(kept, wanted)
    assert torch.equal(found, weights * wanted)
    found, filled = drop_tokens(weights, chosen, is_filled_up=True, **drop)
    assert torch.equal(found, weights * wanted)
    assert filled.sum(0).tolist() == [min(capacity, 4)] * 2
    assert not (wanted & ~filled).any()
