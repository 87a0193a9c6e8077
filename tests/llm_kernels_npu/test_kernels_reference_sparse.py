"""References of DeepSeek's sparse attention against transformers' DeepSeek-V3.2."""

import pytest
import torch

from llm_kernels_npu import kernels
from llm_kernels_npu.errors import CallRefusedError
from llm_kernels_npu.ops.dsa_indexer.reference import dsa_indexer
from llm_kernels_npu.ops.sparse_attention.reference import sparse_attention
from llm_kernels_npu.select import load

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_indexer_equals_transformers_deepseek_v32(seed, backend):
    from transformers import DeepseekV32Config
    from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32Indexer

    config = DeepseekV32Config(
        hidden_size=12, index_n_heads=4, index_head_dim=8, index_topk=5, q_lora_rank=6,
        qk_rope_head_dim=4,
    )  # fmt: skip
    theirs = DeepseekV32Indexer(config, 0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, generator=seed)
    hidden, latent = torch.randn(2, 11, 12, generator=seed), torch.randn(2, 11, 6, generator=seed)
    # Angles of zero: the rotation is another operator's business.
    table = (torch.ones(2, 11, 4), torch.zeros(2, 11, 4))
    mask = torch.full((11, 11), float("-inf")).triu(1)
    expected = theirs(hidden, latent, table, mask, None)
    with torch.no_grad():
        q = theirs.wq_b(latent).view(2, 11, 4, 8)
        k, weights = theirs.k_norm(theirs.wk(hidden)), theirs.weights_proj(hidden)
    found = load("dsa_indexer", backend)[0](q, k, weights, top_k=5)
    for t in range(11):
        seen = min(t + 1, 5)
        for b in range(2):
            wanted = sorted(key for key in expected[b, t].tolist() if key <= t)
            assert found[b, t].tolist() == wanted + [-1] * (5 - seen)


def test_indexer_by_hand():
    # Scores of the last query: 2 - 0, 0 - 3, 1 - 0, 0 - 0: head 2 counts against a key.
    q = torch.eye(2).expand(1, 4, 2, 2)
    k = torch.tensor([[[2.0, -1.0], [-5.0, 3.0], [1.0, 0.0], [-1.0, -1.0]]])
    weights = torch.tensor([1.0, -1.0]).expand(1, 4, 2)
    found = dsa_indexer(q, k, weights, top_k=2)
    assert found.tolist() == [[[0, -1], [0, 1], [0, 2], [0, 2]]]
    tied = dsa_indexer(q, torch.zeros(1, 4, 2), weights, top_k=3)
    assert tied[0, 3].tolist() == [0, 1, 2]


def test_indexer_in_runs_of_queries_equals_all_at_once(seed, monkeypatch):
    import importlib

    in_runs = importlib.import_module("llm_kernels_npu.ops.dsa_indexer.torch")
    q, k = torch.randn(2, 9, 3, 4, generator=seed), torch.randn(2, 13, 4, generator=seed)
    weights = torch.randn(2, 9, 3, generator=seed)
    monkeypatch.setattr(in_runs, "SCORES_AT_ONCE", 2 * 3 * 13 * 4)
    for causal in (True, False):
        found = in_runs.dsa_indexer(q, k, weights, top_k=4, causal=causal)
        assert torch.equal(found, dsa_indexer(q, k, weights, top_k=4, causal=causal))


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_absorbed_sparse_attention_equals_transformers_deepseek_v32(seed, backend):
    """Expanded heads with a mask there, one latent and chosen keys here."""
    from transformers.models.deepseek_v32 import modeling_deepseek_v32 as deepseek

    # 3 heads of 5 plain and 4 turning features, values of 6, latents of 8; 10 tokens, 4 keys each
    plain, turning = torch.randn(2, 10, 3, 9, generator=seed).split((5, 4), dim=-1)
    kv = torch.randn(2, 10, 12, generator=seed)
    up_key, up_value = torch.randn(3, 5, 8, generator=seed), torch.randn(3, 6, 8, generator=seed)
    keys = torch.rand(2, 10, 10, generator=seed).topk(4, dim=-1).indices
    latent, key_turning = kv.split((8, 4), dim=-1)
    heads = torch.einsum("bsl,hdl->bhsd", latent, up_key)
    expanded = torch.cat((heads, key_turning[:, None].expand(-1, 3, -1, -1)), -1)
    values = torch.einsum("bsl,hel->bhse", latent, up_value)
    mask = torch.full((2, 10, 10), float("-inf")).scatter(-1, keys, 0.0)[:, None]
    module = torch.nn.Module()
    module.num_key_value_groups = 1
    expected, _ = deepseek.eager_attention_forward(
        module, torch.cat((plain, turning), -1).transpose(1, 2), expanded, values, mask,
        scaling=0.31,
    )  # fmt: skip
    absorbed = torch.cat((torch.einsum("bthd,hdl->bthl", plain, up_key), turning), -1)
    run = load("sparse_attention", backend)[0]
    out = run(absorbed, kv, keys.int(), value_dim=8, scale=0.31)
    found = torch.einsum("bthl,hel->bthe", out, up_value)
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_query_without_keys_gives_0_and_gradients_stay_finite(seed, backend):
    q = torch.randn(1, 2, 3, 6, generator=seed).requires_grad_()
    kv = torch.randn(1, 4, 6, generator=seed).requires_grad_()
    keys = torch.tensor([[[-1, -1], [2, -1]]], dtype=torch.int32)
    out = load("sparse_attention", backend)[0](q, kv, keys, value_dim=4)
    assert out[:, 0].eq(0).all()
    torch.testing.assert_close(out[0, 1], kv[0, 2, :4].expand(3, 4), **CLOSE)
    out.sum().backward()
    assert q.grad is not None
    assert kv.grad is not None
    assert q.grad.isfinite().all()
    assert kv.grad.isfinite().all()


ones = torch.ones
WRONG = {
    "indexer-shape": (
        dsa_indexer,
        (ones(1, 4, 2, 8), ones(1, 4, 6), ones(1, 4, 2)),
        {"top_k": 2},
        r"want \[B, T, H, D\], \[B, S, D\], \[B, T, H\]",
    ),
    "indexer-top-k": (
        dsa_indexer,
        (ones(1, 4, 2, 8), ones(1, 4, 8), ones(1, 4, 2)),
        {"top_k": 0},
        "top_k is 0",
    ),
    "indexer-few-keys": (
        dsa_indexer,
        (ones(1, 4, 2, 8), ones(1, 3, 8), ones(1, 4, 2)),
        {"top_k": 2},
        "4 queries and only 3 keys",
    ),
    "attention-value": (
        sparse_attention,
        (ones(1, 4, 2, 8), ones(1, 4, 8), torch.zeros(1, 4, 2).int()),
        {"value_dim": 9},
        "value_dim is 9, want 1 to kv's 8",
    ),
    "attention-keys": (
        sparse_attention,
        (ones(1, 4, 2, 8), ones(1, 4, 8), torch.zeros(1, 4, 2)),
        {"value_dim": 8},
        "keys are float32, want int32 or int64",
    ),
}


@pytest.mark.parametrize(("operator", "args", "options", "match"), WRONG.values(), ids=WRONG)
def test_wrong_call_is_refused(operator, args, options, match):
    with pytest.raises(CallRefusedError, match=match):
        getattr(kernels(device="cpu"), operator.__name__)(*args, **options)
