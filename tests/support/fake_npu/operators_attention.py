"""What torch_npu's fused attention computes, forward and backward, from its documentation.

The softmax statistics of a query are its largest score and the sum of the exponentials from it,
sink included, eight times over. Layouts BSND and BNSD have a batch; TND holds documents one
after the other, whose ends are given.
"""

import torch
from torch import Tensor

_STATISTICS_WIDTH = 8
_ROWS_WITHOUT_KEYS = 2


def fusion_attention(
    query, key, value, head_num, input_layout, atten_mask, scale, keep_prob, sparse_mode,
    pre_tockens, next_tockens, pse, padding_mask, sink, inner_precise, actual_seq_qlen,
    actual_seq_kvlen, dropout_mask=None, **_unused,
):  # fmt: skip
    _refuse(pse, padding_mask, dropout_mask, keep_prob)
    band = (atten_mask, sparse_mode, pre_tockens, next_tockens)
    spans = _spans(input_layout, actual_seq_qlen, actual_seq_kvlen)
    parts = [
        _forward(q, k, v, head_num, scale, band, sink, inner_precise)
        for q, k, v in _cut(spans, input_layout, query, key, value)
    ]
    out, top, total = (_joined(spans, input_layout, [part[i] for part in parts]) for i in range(3))
    statistics = (_eightfold(top), _eightfold(total))
    return out.to(query.dtype), *statistics, query.new_empty(0), 0, 0, 0


def fusion_attention_grad(
    query, key, value, dy, head_num, input_layout, atten_mask, softmax_max, softmax_sum,
    attention_in, scale_value, sparse_mode, pre_tockens, next_tockens, sink, pse, keep_prob,
    padding_mask, actual_seq_qlen, actual_seq_kvlen, **_unused,
):  # fmt: skip
    _refuse(pse, padding_mask, None, keep_prob)
    band = (atten_mask, sparse_mode, pre_tockens, next_tockens)
    spans = _spans(input_layout, actual_seq_qlen, actual_seq_kvlen)
    cut = _cut(spans, input_layout, query, key, value)
    outputs = [
        tuple(_heads_first(x[q_span] if q_span else x, input_layout) for x in (dy, attention_in))
        for q_span, _ in spans
    ]
    statistics = [
        tuple(
            _statistic(x[q_span] if q_span else x, input_layout) for x in (softmax_max, softmax_sum)
        )
        for q_span, _ in spans
    ]
    parts = [
        _backward(*tensors, head_num, scale_value, band, sink, *out, *statistic)
        for tensors, out, statistic in zip(cut, outputs, statistics, strict=True)
    ]
    grads = [_joined(spans, input_layout, [part[i] for part in parts]) for i in range(3)]
    grad_sink = query.new_empty(0) if sink is None else sum(part[3] for part in parts)
    return *(grad.to(query.dtype) for grad in grads), query.new_empty(0), grad_sink


def fusion_attention_v3(**arguments):
    """What scaled_dot_product_attention becomes on an NPU; seed and offset are tensors here."""
    *results, _seed, _offset, _count = fusion_attention(**arguments)
    return *results, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)


def _forward(q, k, v, heads, scale, band, sink, inner_precise):
    """One batch, heads first and in float32: output, largest score, sum."""
    assert q.shape[1] == heads
    k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    scores = (q @ k.mT * scale).masked_fill(_hidden(q, k, band), float("-inf"))
    top = scores.amax(-1, keepdim=True)
    if sink is not None:
        _check_sink(sink, heads)
        top = torch.maximum(top, sink[:, None, None])
    if bool((top == float("-inf")).any()) and inner_precise != _ROWS_WITHOUT_KEYS:
        raise NotImplementedError("rows without keys need inner_precise=2")
    weights = (scores - top.masked_fill(top == float("-inf"), 0)).exp()
    total = weights.sum(-1, keepdim=True)
    if sink is not None:
        total = total + (sink[:, None, None] - top).exp()
    return (weights / total.masked_fill(total == 0, 1)) @ v, top, total


def _backward(q, k, v, heads, scale, band, sink, dy, out, top, total):
    """Gradients of q, k, v and the sink, from the statistics of the forward."""
    groups = k.shape[1]
    k, v = (x.repeat_interleave(heads // groups, 1) for x in (k, v))
    scores = (q @ k.mT * scale).masked_fill(_hidden(q, k, band), float("-inf"))
    empty = total == 0
    start, divisor = top.masked_fill(empty, 0), total.masked_fill(empty, 1)
    p = (scores - start).exp() / divisor
    shared = (dy * out).sum(-1, keepdim=True)
    ds = p * (dy @ v.mT - shared) * scale
    grads = (ds @ k, _sum_groups(ds.mT @ q, groups), _sum_groups(p.mT @ dy, groups))
    if sink is None:
        return *grads, None
    # The sink's value is zero: only the shared part is left of its score's gradient.
    part = (sink[:, None, None] - start).exp() / divisor
    return *grads, -(part * shared).sum((0, 2, 3))


def _refuse(pse, padding_mask, dropout_mask, keep_prob) -> None:
    if any(option is not None for option in (pse, padding_mask, dropout_mask)) or keep_prob != 1.0:
        raise NotImplementedError("npu_fusion_attention with pse, padding or dropout")


def _check_sink(sink: Tensor, heads: int) -> None:
    """As aclnnFlashAttentionScore does: one float32 number a query head."""
    assert sink.dtype is torch.float32, sink.dtype
    assert sink.shape == (heads,), sink.shape


def _spans(layout: str, ends, key_ends):
    """Where each document's queries and keys lie; one (None, None) for a layout with a batch."""
    if layout != "TND":
        assert ends is None, "lengths go with TND alone"
        return [(None, None)]
    starts, key_starts = [0, *ends[:-1]], [0, *key_ends[:-1]]
    pairs = zip(zip(starts, ends, strict=True), zip(key_starts, key_ends, strict=True), strict=True)
    return [
        (slice(start, stop), slice(key_start, key_stop))
        for (start, stop), (key_start, key_stop) in pairs
        if start < stop or key_start < key_stop
    ]


def _cut(spans, layout, query, key, value):
    """Each span's q, k, v, heads first and in float32."""
    for q_span, k_span in spans:
        cut = (
            x if s is None else x[s] for x, s in ((query, q_span), (key, k_span), (value, k_span))
        )
        yield tuple(_heads_first(x, layout) for x in cut)


def _joined(spans, layout, parts):
    """Results of the spans in the layout of the operator; inverse of `_cut`."""
    if layout == "TND":
        return torch.cat([part[0].transpose(0, 1) for part in parts])
    (part,) = parts
    is_statistic = part.shape[-1] == 1
    return part.transpose(1, 2).contiguous() if layout == "BSND" and not is_statistic else part


def _heads_first(x: Tensor, layout: str) -> Tensor:
    if layout == "TND":
        return x.transpose(0, 1)[None].float()
    if layout == "BSND":
        return x.transpose(1, 2).float()
    assert layout == "BNSD", layout
    return x.float()


def _statistic(x: Tensor, layout: str) -> Tensor:
    """A statistic [B, H, T, 1] of what forward gave out."""
    return (x.transpose(0, 1)[None] if layout == "TND" else x)[..., :1]


def _eightfold(x: Tensor) -> Tensor:
    return x.expand(*x.shape[:-1], _STATISTICS_WIDTH).contiguous()


def _sum_groups(grad: Tensor, groups: int) -> Tensor:
    return grad.unflatten(1, (groups, -1)).sum(2)


def _hidden(q: Tensor, k: Tensor, band) -> Tensor:
    """True where a query must not look, per the table of sparse modes in torch_npu's docs."""
    mask, sparse_mode, pre_tockens, next_tockens = band
    queries, keys = q.shape[-2], k.shape[-2]
    if sparse_mode == 0 and mask is None:
        return torch.zeros(queries, keys, dtype=torch.bool)
    if sparse_mode in (0, 1):
        assert mask.shape[-2:] == (queries, keys), mask.shape
        batch, heads = q.shape[:2]
        # SS, 11SS, B1SS or BNSS.
        assert mask.shape[:-2] in ((), (1, 1), (batch, 1), (batch, heads)), mask.shape
        return mask.bool()
    assert mask.shape == (2048, 2048), "the compressed modes take the 2048 x 2048 triangle"
    assert torch.equal(mask.bool(), torch.ones(2048, 2048, dtype=torch.bool).triu(1))
    query, key = torch.arange(queries)[:, None], torch.arange(keys)[None, :]
    if sparse_mode == 2:
        return key > query
    # Modes 3 and 4 count from the lower right corner.
    distance = query + (keys - queries) - key
    if sparse_mode == 3:
        return distance < 0
    assert sparse_mode == 4, sparse_mode
    return (distance > pre_tockens) | (distance < -next_tockens)


ATTENTION = {
    "npu_fusion_attention": fusion_attention,
    "npu_fusion_attention_grad": fusion_attention_grad,
    "npu_fusion_attention_v3": fusion_attention_v3,
    "npu_fusion_attention_grad_v3": fusion_attention_grad,
}
"""Operators by their name in the `npu` namespace."""
