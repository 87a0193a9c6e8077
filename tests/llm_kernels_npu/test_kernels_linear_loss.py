"""The output layer's loss against PyTorch's own two steps, and what its sum saves."""

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from llm_kernels_npu import kernels
from llm_kernels_npu.ops.linear_cross_entropy import chunks

ROWS, HIDDEN, VOCAB = 40, 12, 61
CHUNK_ROWS = 8
PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm_)
linear_cross_entropy = kernels(device="cpu").linear_cross_entropy


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "_MIN_CHUNK_ROWS", CHUNK_ROWS)


class Products(TorchDispatchMode):
    """Counts the products of all chunks as one."""

    chunks = 0

    @property
    def number(self):
        return self.chunks * CHUNK_ROWS / ROWS

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.chunks += func.overloadpacket in PRODUCTS
        return func(*args, **(kwargs or {}))


def leaves(seed, dtype=torch.float64):
    hidden = torch.randn(ROWS, HIDDEN, generator=seed, dtype=torch.float64)
    weight = torch.randn(VOCAB, HIDDEN, generator=seed, dtype=torch.float64)
    targets = torch.randint(VOCAB, (ROWS,), generator=seed)
    targets[::3] = -100
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def two_steps(hidden, weight, targets):
    logits = functional.linear(hidden, weight)
    return functional.cross_entropy(logits, targets, reduction="sum")


def test_sum_and_its_scaled_gradients_equal_pytorchs(seed):
    hidden, weight, targets = leaves(seed)
    found = linear_cross_entropy(hidden, weight, targets, reduction="sum")
    wanted = two_steps(hidden, weight, targets)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found / 7, (hidden, weight)),
        torch.autograd.grad(wanted / 7, (hidden, weight)),
    )


def test_a_second_backward_gives_the_same_gradients_again(seed):
    hidden, weight, targets = leaves(seed)
    loss = linear_cross_entropy(hidden, weight, targets, reduction="sum") * 3
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, weight)), first, rtol=0, atol=0)


@pytest.mark.parametrize("frozen", [0, 1], ids=["hidden", "weight"])
def test_a_frozen_factor_gets_no_gradient_and_costs_no_product(frozen, seed):
    hidden, weight, targets = leaves(seed)
    wanted = torch.autograd.grad(two_steps(hidden, weight, targets), (hidden, weight))
    factors = [hidden, weight]
    factors[frozen] = factors[frozen].detach()
    with Products() as products:
        linear_cross_entropy(*factors, targets, reduction="sum").backward()
    assert factors[frozen].grad is None
    torch.testing.assert_close(factors[1 - frozen].grad, wanted[1 - frozen])
    assert products.number == 2


def test_losses_by_row_over_a_frozen_weight_make_no_product_twice(seed):
    """Each row's gradient is scaled by its own factor; nothing adds rows up."""
    hidden, weight, targets = leaves(seed)
    weight = weight.detach()
    factors = torch.randn(ROWS, generator=seed, dtype=torch.float64)
    logits = functional.linear(hidden, weight)
    by_row = functional.cross_entropy(logits, targets, reduction="none")
    (wanted,) = torch.autograd.grad((by_row * factors).sum(), hidden)
    with Products() as products:
        found = linear_cross_entropy(hidden, weight, targets)
        (found * factors).sum().backward()
    torch.testing.assert_close(found, by_row)
    torch.testing.assert_close(hidden.grad, wanted)
    assert products.number == 2


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_no_more_rows_than_asked_for_have_logits_at_a_time(reduction, seed):
    class Rows(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func.overloadpacket is torch.ops.aten.mm and out.shape[1] == VOCAB:
                self.most = max(self.most, out.shape[0])
            return out

    hidden, weight, targets = leaves(seed)
    with Rows() as rows:
        linear_cross_entropy(
            hidden, weight, targets, reduction=reduction, chunk_rows=3
        ).sum().backward()
    assert rows.most == 3


def test_all_rows_ignored_give_zeros(seed):
    hidden, weight, targets = leaves(seed)
    loss = linear_cross_entropy(hidden, weight, targets.fill_(-100), reduction="sum")
    loss.backward()
    assert loss == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


@pytest.mark.parametrize(("reduction", "number"), [("sum", 3), ("none", 4)])
def test_the_sum_makes_no_product_twice(reduction, number, seed):
    """Logits and two gradients; losses by row make the logits once more."""
    hidden, weight, targets = leaves(seed)
    with Products() as products:
        linear_cross_entropy(hidden, weight, targets, reduction=reduction).sum().backward()
    assert products.number == number


def test_without_gradients_the_sum_makes_the_logits_alone(seed):
    hidden, weight, targets = leaves(seed)
    with torch.no_grad(), Products() as products:
        loss = linear_cross_entropy(hidden, weight, targets, reduction="sum")
    assert products.number == 1
    torch.testing.assert_close(loss, two_steps(hidden, weight, targets).detach())


def test_a_weights_gradient_over_many_rows_does_not_overflow_float16():
    """2000 rows of 100 and one word: its unscaled gradient is near 100 000, above 65 504."""
    hidden = torch.full((2000, 4), 100.0, dtype=torch.float16)
    weight = torch.zeros(2, 4, dtype=torch.float16, requires_grad=True)
    targets = torch.zeros(2000, dtype=torch.int64)
    (linear_cross_entropy(hidden, weight, targets, reduction="sum") / 2000).backward()
    # Each row's word has probability 1/2, so a slope of -1/2 and of 1/2 for the other.
    expected = torch.tensor([[-50.0] * 4, [50.0] * 4], dtype=torch.float16)
    torch.testing.assert_close(weight.grad, expected)


def test_the_gradient_in_bfloat16_is_scaled_in_float32(seed):
    """A third as bfloat16 is 0.2 % off, in every element alike."""
    hidden, weight, targets = leaves(seed, torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, targets, reduction="sum")
    (unit,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    (third,) = torch.autograd.grad(loss / 3, hidden)
    torch.testing.assert_close(third, (unit.float() / 3).bfloat16(), rtol=0, atol=0)
