"""What torch_npu's operators for DeepSeek's sparse attention compute, from their documentation."""

import torch


def lightning_indexer(
    query, key, weights, sparse_count, sparse_mode, layout_query, return_value, **_unused
):
    assert layout_query == "BSND"
    assert query.dtype is key.dtype is weights.dtype
    assert query.dtype in (torch.float16, torch.bfloat16)
    if return_value or key.shape[2] != 1 or sparse_mode not in (0, 3):
        raise NotImplementedError("npu_lightning_indexer beyond indices of one key head")
    (batch, queries), keys = query.shape[:2], key.shape[1]
    dots = query.float().permute(0, 2, 1, 3) @ key.float().permute(0, 2, 3, 1)
    scores = (dots.clamp(min=0) * weights.float().permute(0, 2, 1)[..., None]).sum(1)
    hidden = torch.zeros(queries, keys, dtype=torch.bool)
    if sparse_mode == 3:
        hidden = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
    order = torch.argsort(
        scores.masked_fill(hidden, float("-inf")), dim=-1, descending=True, stable=True
    )
    order = order.masked_fill(hidden.expand(batch, -1, -1).gather(-1, order), -1)
    out = torch.full((batch, queries, 1, sparse_count), -1, dtype=torch.int32)
    out[:, :, 0, : min(keys, sparse_count)] = order[..., :sparse_count].int()
    return out, query.new_empty(0)


def sparse_flash_attention(
    query, key, value, sparse_indices, scale_value, query_rope, key_rope, sparse_block_size,
    layout_query, sparse_mode, attention_mode, return_softmax_lse, **_unused,
):  # fmt: skip
    assert (layout_query, attention_mode, sparse_block_size) == ("BSND", 2, 1)
    assert sparse_mode == 0
    assert query.dtype in (torch.float16, torch.bfloat16)
    assert sparse_indices.dtype is torch.int32
    p, top, total = _shares(query, key, sparse_indices, scale_value, query_rope, key_rope)
    out = torch.einsum("bths,bse->bthe", p, value[:, :, 0].float()).to(query.dtype)
    if not return_softmax_lse:
        return out, torch.empty(0), torch.empty(0)
    return out, *(x.squeeze(-1)[:, None].contiguous() for x in (top, total))


def sparse_flash_attention_grad(
    query, key, value, sparse_indices, d_out, out, softmax_max, softmax_sum, scale_value,
    sparse_block_size, query_rope, key_rope, sparse_mode, attention_mode, **_unused,
):  # fmt: skip
    assert (sparse_block_size, sparse_mode, attention_mode) == (1, 0, 2)
    batch, queries, heads = query.shape[:3]
    assert softmax_max.shape == softmax_sum.shape == (batch, 1, queries, heads)
    p, _, _ = _shares(query, key, sparse_indices, scale_value, query_rope, key_rope)
    d, v = d_out.float(), value[:, :, 0].float()
    ds = torch.einsum("bthe,bse->bths", d, v) - (d * out.float()).sum(-1, keepdim=True)
    ds = p * ds * scale_value
    grads = []
    for q, k in ((query, key), (query_rope, key_rope)):
        d_k = torch.einsum("bths,bthd->bsd", ds, q.float())[:, :, None]
        grads.append((torch.einsum("bths,bsd->bthd", ds, k[:, :, 0].float()), d_k))
    (d_query, d_key), (d_query_rope, d_key_rope) = grads
    d_value = torch.einsum("bths,bthe->bse", p, d)[:, :, None]
    all_grads = (d_query, d_key, d_value, d_query_rope, d_key_rope)
    return tuple(grad.to(query.dtype) for grad in all_grads)


def _shares(query, key, sparse_indices, scale, query_rope, key_rope):
    """Softmax over the chosen keys [B, T, H, S], its maximum and its sum."""
    q, k = torch.cat((query, query_rope), -1).float(), torch.cat((key, key_rope), -1).float()
    scores = torch.einsum("bthd,bsd->bths", q, k[:, :, 0]) * scale
    hidden = torch.ones(*query.shape[:2], key.shape[1], dtype=torch.bool)
    for b, t, _, slot in (sparse_indices >= 0).nonzero().tolist():
        hidden[b, t, sparse_indices[b, t, 0, slot]] = False
    scores = scores.masked_fill(hidden[:, :, None], float("-inf"))
    top = scores.amax(-1, keepdim=True)
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True)
    return weights / total, top, total


SPARSE = {
    "npu_lightning_indexer": lightning_indexer,
    "npu_sparse_flash_attention": sparse_flash_attention,
    "npu_sparse_flash_attention_grad": sparse_flash_attention_grad,
}
"""Operators by their name in the `npu` namespace."""

CALLED = {
    "dsa_indexer": ("npu_lightning_indexer",),
    "sparse_attention": ("npu_sparse_flash_attention", "npu_sparse_flash_attention_grad"),
}
"""What the NPU backend of each of our operators calls, forward and backward."""
