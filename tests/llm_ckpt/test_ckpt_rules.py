"""Rules against hand-made tensors, and the law that a rank may merge only its own slices."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_ckpt.arch import parse_arch_text
from llm_ckpt.layout import COLUMNS, GATED, ROWS, Cut, Shard, cut, join
from llm_ckpt.rules import GdnIn, Glu, InterleavedGlu, PackedQkv, Qkv, Same, Transposed


def arch_with(golden_arch, heads, groups, head_dim, *, is_gated=False):
    """Attention of these sizes; a gated delta net with as many key heads as query groups."""
    attention = {"heads": heads, "query_groups": groups, "head_dim": head_dim}
    document = golden_arch("llama_tiny")
    document["attention"] |= {**attention, "output_gate": is_gated}
    document["layers"].append({**document["layers"][0], "mixer": "gdn"})
    document["gdn"] = {"key_heads": groups, "value_heads": heads, "conv_kernel": 4}
    document["gdn"] |= {"key_head_dim": head_dim, "value_head_dim": head_dim + 1}
    from llm_ckpt.arch import parse_arch

    return parse_arch(document, where="test")


QKV = Qkv("m", q="q", k="k", v="v")


def test_qkv_rows_are_queries_then_key_then_value_of_each_group(golden_arch):
    arch = arch_with(golden_arch, heads=4, groups=2, head_dim=1)
    q, k, v = torch.tensor([0, 1, 2, 3]), torch.tensor([10, 11]), torch.tensor([20, 21])
    merged = QKV.merge([q, k, v], arch)
    assert merged.tolist() == [0, 1, 10, 20, 2, 3, 11, 21]
    assert [part.tolist() for part in QKV.split(merged, arch)] == [[0, 1, 2, 3], [10, 11], [20, 21]]


def test_qkv_keeps_the_rows_of_a_head_together(golden_arch):
    arch = arch_with(golden_arch, heads=2, groups=2, head_dim=2)
    q, k, v = torch.arange(4)[:, None], torch.arange(10, 14)[:, None], torch.arange(20, 24)[:, None]
    merged = QKV.merge([q, k, v], arch)
    assert merged[:, 0].tolist() == [0, 1, 10, 11, 20, 21, 2, 3, 12, 13, 22, 23]


def test_glu_is_gate_over_up_and_a_rank_holds_its_own_halves(golden_arch):
    arch = arch_with(golden_arch, 4, 2, 16)
    merged = Glu("m", gate="g", up="u").merge([torch.tensor([0, 1]), torch.tensor([10, 11])], arch)
    assert merged.tolist() == [0, 1, 10, 11]
    assert cut(merged, GATED, Shard(1, 2)).tolist() == [1, 11]


@given(
    groups=st.sampled_from([1, 2, 4, 8]),
    per_group=st.integers(1, 4),
    head_dim=st.integers(1, 4),
    tp=st.sampled_from([1, 2, 4, 8]),
    is_bias=st.booleans(),
    is_gated=st.booleans(),
)
def test_merging_slices_is_slicing_the_merged(
    golden_arch, groups, per_group, head_dim, tp, is_bias, is_gated
):
    arch = arch_with(golden_arch, groups * per_group, groups, head_dim, is_gated=is_gated)
    rest = () if is_bias else (3,)
    rows = groups * (per_group * (1 + is_gated) + 2) * head_dim
    qk, v = groups * head_dim, groups * per_group * (head_dim + 1)
    sections = (qk, qk, v, v, groups * per_group, groups * per_group)
    rules = {
        QKV: ((rows, *rest), ROWS),
        PackedQkv("m", "qkv"): ((rows, *rest), ROWS),
        Transposed(PackedQkv("m", "qkv")): ((rows, 3), ROWS),
        Glu("m", gate="g", up="u"): ((16, *rest), GATED),
        InterleavedGlu("m", "gu"): ((16, *rest), GATED),
        Transposed(InterleavedGlu("m", "gu")): ((16, 3), GATED),
        GdnIn("m", qkvz="qkvz", ba="ba"): ((sum(sections), *rest), Cut(0, sections)),
        Same("m", "h"): ((8, 16), COLUMNS),
        Transposed(Same("m", "h")): ((8, 16), COLUMNS),
    }
    for rule, (shape, how) in rules.items():
        if not rule.commutes(tp, arch):
            assert groups % tp or (isinstance(rule, Transposed) and "qkv" in rule.parts)
            continue
        parts = [torch.rand(part) for part in rule.part_shapes(shape, arch)]
        merged = rule.merge(parts, arch)
        assert merged.shape == shape
        assert all(map(torch.equal, rule.split(merged, arch), parts))
        pieces = []
        for rank in range(tp):
            cuts = zip(parts, rule.part_cuts(how, arch), strict=True)
            slices = [cut(part, c, Shard(rank, tp)) for part, c in cuts]
            pieces.append(rule.merge(slices, arch))
            assert torch.equal(pieces[-1], cut(merged, how, Shard(rank, tp)))
        assert torch.equal(join(pieces, how), merged)


def test_packed_rows_are_all_q_then_all_k_then_all_v(golden_arch):
    arch = arch_with(golden_arch, heads=4, groups=2, head_dim=1)
    packed = torch.tensor([0, 1, 2, 3, 10, 11, 20, 21])
    merged = PackedQkv("m", "qkv").merge([packed], arch)
    assert merged.tolist() == [0, 1, 10, 20, 2, 3, 11, 21]


def test_a_gate_follows_its_query_in_hugging_face_and_all_queries_of_the_group_in_megatron(
    golden_arch,
):
    arch = arch_with(golden_arch, heads=4, groups=2, head_dim=1, is_gated=True)
    q = torch.tensor([0, 50, 1, 51, 2, 52, 3, 53])
    merged = QKV.merge([q, torch.tensor([10, 11]), torch.tensor([20, 21])], arch)
    assert merged.tolist() == [0, 1, 50, 51, 10, 20, 2, 3, 52, 53, 11, 21]


def test_gated_delta_net_rows_are_gathered_kind_by_kind(golden_arch):
    """As transformers' fix_query_key_value_ordering takes them apart (modeling_qwen3_next.py)."""
    arch = arch_with(golden_arch, heads=4, groups=2, head_dim=1)
    # Key head 0: q 0, k 10, v 20..23 (two heads of two), z 30..33; key head 1 the same, plus 100.
    one = torch.tensor([0, 10, 20, 21, 22, 23, 30, 31, 32, 33])
    ba = torch.tensor([40, 41, 50, 51])
    rule = GdnIn("m", qkvz="qkvz", ba="ba")
    merged = rule.merge([torch.cat([one, one + 100]), torch.cat([ba, ba + 100])], arch)
    wanted = [0, 100, 10, 110, 20, 21, 22, 23, 120, 121, 122, 123, 30, 31, 32, 33, 130, 131, 132]
    assert merged.tolist() == [*wanted, 133, 40, 41, 140, 141, 50, 51, 150, 151]


def test_golden_files_parse(golden_text):
    assert parse_arch_text(golden_text("llama_tiny"), where="golden").family == "llama"
