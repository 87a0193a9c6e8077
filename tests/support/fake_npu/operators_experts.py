"""What torch_npu's operators for mixtures of experts compute, from their documentation."""

import torch


def grouped_matmul(
    x, weight, group_list, split_item, group_type, group_list_type, bias, act_type, **_quantized
):
    """One x, one weight, one output; rows grouped (type 0) or what is summed over (type 2)."""
    if len(x) != 1 or len(weight) != 1 or split_item not in (2, 3) or bias or act_type:
        raise NotImplementedError("npu_grouped_matmul beyond one tensor each")
    assert group_list.dtype is torch.int64
    ends = group_list.cumsum(0) if group_list_type == 1 else group_list
    starts = [0, *ends[:-1].tolist()]
    assert int(ends[-1]) == (x[0].shape[0] if group_type == 0 else weight[0].shape[0])
    left, right = x[0].float(), weight[0].float()
    spans = [slice(start, end) for start, end in zip(starts, ends.tolist(), strict=True)]
    if group_type == 0:
        out = torch.cat([left[span] @ right[e] for e, span in enumerate(spans)])
    else:
        assert group_type == 2, group_type
        assert left.stride(0) == 1, "the sum is grouped for a transposed x alone"
        out = torch.stack([left[:, span] @ right[span] for span in spans])
    return [out.to(x[0].dtype)]


def moe_token_permute(tokens, indices, num_out_tokens, padded_mode):
    assert not padded_mode
    assert num_out_tokens is None
    first = torch.argsort(indices.flatten(), stable=True)
    rows = torch.argsort(first)
    copies = torch.empty(indices.numel(), tokens.shape[1], dtype=tokens.dtype)
    copies[rows] = tokens.repeat_interleave(indices.shape[1], 0)
    return copies, rows.int()


def moe_token_permute_grad(tokens, grad_permuted_tokens, indices, sorted_indices, padded_mode):
    assert not padded_mode
    copies = grad_permuted_tokens.float()[sorted_indices.long()]
    return copies.view(*indices.shape, -1).sum(1).to(tokens.dtype)


def moe_token_unpermute(permuted_tokens, sorted_indices, probs, padded_mode, restore_shape):
    assert not padded_mode
    assert restore_shape is None
    assert probs.dtype is permuted_tokens.dtype
    picked = permuted_tokens.float()[sorted_indices.long()].view(*probs.shape, -1)
    return torch.einsum("nkh,nk->nh", picked, probs.float()).to(permuted_tokens.dtype)


def moe_token_unpermute_grad(
    permuted_tokens, grad_unpermuted_tokens, sorted_indices, probs, **_unused
):
    rows, grad = sorted_indices.long(), grad_unpermuted_tokens.float()
    d_permuted = torch.empty_like(permuted_tokens)
    spread = (grad[:, None] * probs.float()[..., None]).flatten(0, 1)
    d_permuted[rows] = spread.to(permuted_tokens.dtype)
    picked = permuted_tokens.float()[rows].view(*probs.shape, -1)
    return d_permuted, (picked * grad[:, None]).sum(-1).to(probs.dtype)


def moe_gating_top_k(
    x, k, bias, k_group, group_count, group_select_mode, renorm, norm_type, out_flag,
    routed_scaling_factor, eps,
):  # fmt: skip
    assert renorm == 0
    assert bias is None or bias.dtype is x.dtype
    norm = torch.sigmoid(x.float()) if norm_type == 1 else torch.softmax(x.float(), -1)
    choice = norm if bias is None else norm + bias.float()
    if group_count > 1:
        groups = choice.view(len(x), group_count, -1)
        highest = groups.sort(-1, descending=True).values
        of_group = highest[..., :2].sum(-1) if group_select_mode == 1 else highest[..., 0]
        last = torch.argsort(of_group, dim=-1, descending=True, stable=True)[:, k_group:]
        out = torch.zeros_like(of_group, dtype=torch.bool).scatter(1, last, value=True)
        choice = groups.masked_fill(out[..., None], float("-inf")).view_as(norm)
    experts = torch.argsort(choice, dim=-1, descending=True, stable=True)[:, :k]
    y = norm.gather(1, experts)
    if norm_type == 1:
        y = y / (y.sum(-1, keepdim=True) + eps)
    y = y * routed_scaling_factor
    return y.to(x.dtype), experts.int(), norm if out_flag else torch.zeros_like(norm)


EXPERTS = {
    "npu_grouped_matmul": grouped_matmul,
    "npu_moe_token_permute": moe_token_permute,
    "npu_moe_token_permute_grad": moe_token_permute_grad,
    "npu_moe_token_unpermute": moe_token_unpermute,
    "npu_moe_token_unpermute_grad": moe_token_unpermute_grad,
    "npu_moe_gating_top_k": moe_gating_top_k,
}
"""Operators by their name in the `npu` namespace."""

CALLED = {
    "grouped_matmul": ("npu_grouped_matmul",) * 3,
    "permute": ("npu_moe_token_permute", "npu_moe_token_permute_grad"),
    "unpermute": ("npu_moe_token_unpermute", "npu_moe_token_unpermute_grad"),
    "router_topk": ("npu_moe_gating_top_k",),
}
"""What the NPU backend of each of our operators calls, forward and backward."""
