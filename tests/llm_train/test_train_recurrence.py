"""Recurrences computed in chunks give what a token after another gives, gradients too."""

import pytest
import torch

from llm_train.model.recurrence import gated_delta_rule, selective_scan

B, G, H, K, V = 2, 2, 6, 10, 14


def leaf(*shape, low=-1.0, high=1.0):
    return torch.empty(shape, dtype=torch.float64).uniform_(low, high).requires_grad_()


def per_head(x):
    return x.repeat_interleave(H // G, dim=2)


def delta_rule_by_token(query, key, value, *, log_decay_TBH, beta_TBH):
    """Equation 10 of Yang et al., Gated Delta Networks (arXiv 2412.06464)."""
    query, key = per_head(query), per_head(key)
    state, outs = torch.zeros(B, H, K, V, dtype=value.dtype), []
    for q, k, v, g, b in zip(query, key, value, log_decay_TBH, beta_TBH, strict=True):
        state = g.exp()[..., None, None] * state
        read = torch.einsum("bhk,bhkv->bhv", k, state)
        state = state + torch.einsum("bh,bhk,bhv->bhkv", b, k, v - read)
        outs.append(torch.einsum("bhk,bhkv->bhv", q, state))
    return torch.stack(outs)


def scan_by_token(x, *, dt_TBH, a_H, b_TBGK, c_TBGK):
    """Equation 1 of Dao and Gu (arXiv 2405.21060), discretised as their code does."""
    state, outs = torch.zeros(B, H, K, V, dtype=x.dtype), []
    for x_t, dt, b, c in zip(x, dt_TBH, per_head(b_TBGK), per_head(c_TBGK), strict=True):
        state = (a_H * dt).exp()[..., None, None] * state
        state = state + torch.einsum("bh,bhk,bhv->bhkv", dt, b, x_t)
        outs.append(torch.einsum("bhk,bhkv->bhv", c, state))
    return torch.stack(outs)


def assert_same(found, wanted, leaves):
    """In fp64, where the order of sums is all that differs."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)
    weights = torch.randn(found.shape, dtype=found.dtype)
    gradients = [torch.autograd.grad((out * weights).sum(), leaves) for out in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("tokens", "chunk"), [(1, 64), (11, 64), (16, 4), (37, 8)])
def test_delta_rule_in_chunks_equals_token_by_token(tokens, chunk):
    torch.manual_seed(0)
    key = torch.nn.functional.normalize(leaf(tokens, B, G, K), dim=-1).detach().requires_grad_()
    query, value = leaf(tokens, B, G, K), leaf(tokens, B, H, V)
    gates = {
        "log_decay_TBH": leaf(tokens, B, H, low=-2.0, high=0.0),
        "beta_TBH": leaf(tokens, B, H, low=0.0),
    }
    found = gated_delta_rule(query, key, value, **gates, chunk=chunk)
    wanted = delta_rule_by_token(query, key, value, **gates)
    assert_same(found, wanted, [query, key, value, *gates.values()])


def test_delta_rule_stays_exact_where_tokens_repeat():
    """Equal keys and beta 1: a series of powers would lose every digit in fp32."""
    torch.manual_seed(0)
    key = torch.nn.functional.normalize(torch.randn(1, B, G, K), dim=-1).expand(256, -1, -1, -1)
    query, value = torch.randn(256, B, G, K), torch.randn(256, B, H, V)
    gates = {"log_decay_TBH": torch.zeros(256, B, H), "beta_TBH": torch.ones(256, B, H)}
    found = gated_delta_rule(query, key, value, **gates)
    torch.testing.assert_close(
        found, delta_rule_by_token(query, key, value, **gates), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(("tokens", "chunk"), [(1, 64), (11, 64), (21, 7), (24, 5)])
def test_scan_in_chunks_equals_token_by_token(tokens, chunk):
    torch.manual_seed(0)
    x = leaf(tokens, B, H, V)
    others = {
        "dt_TBH": leaf(tokens, B, H, low=0.0),
        "a_H": leaf(H, low=-4.0, high=-0.5),
        "b_TBGK": leaf(tokens, B, G, K),
        "c_TBGK": leaf(tokens, B, G, K),
    }
    found = selective_scan(x, **others, chunk=chunk)
    assert_same(found, scan_by_token(x, **others), [x, *others.values()])


def test_strong_decay_leaves_gradients_finite():
    """exp of what a masked pair would have is infinite: it must not meet a zero."""
    gates = {
        "log_decay_TBH": torch.full((32, B, H), -30.0, requires_grad=True),
        "beta_TBH": torch.ones(32, B, H),
    }
    query, key, value = torch.ones(32, B, G, K), torch.ones(32, B, G, K), torch.ones(32, B, H, V)
    gated_delta_rule(query, key, value, **gates).sum().backward()
    assert gates["log_decay_TBH"].grad.isfinite().all()
