"""Rules against hand-made tensors, and the law that a rank may merge only its own slices."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_ckpt.arch import parse_arch_text
from llm_ckpt.families import FAMILIES
from llm_ckpt.layout import Cut, Shard, cut, join
from llm_ckpt.rules import Glu, Qkv, Same


def arch_with(golden_arch, heads, groups, head_dim):
    attention = {"heads": heads, "query_groups": groups, "head_dim": head_dim}
    document = golden_arch("llama_tiny")
    document["attention"] |= attention
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
    assert cut(merged, Cut.GATED, Shard(1, 2)).tolist() == [1, 11]


@given(
    groups=st.sampled_from([1, 2, 4, 8]),
    per_group=st.integers(1, 4),
    head_dim=st.integers(1, 4),
    tp=st.sampled_from([1, 2, 4, 8]),
    is_bias=st.booleans(),
)
def test_merging_slices_is_slicing_the_merged(
    golden_arch, groups, per_group, head_dim, tp, is_bias
):
    arch = arch_with(golden_arch, groups * per_group, groups, head_dim)
    rest = () if is_bias else (3,)
    rules = {
        QKV: ((groups * (per_group + 2) * head_dim, *rest), Cut.ROWS),
        Glu("m", gate="g", up="u"): ((16, *rest), Cut.GATED),
        Same("m", "h"): ((8, 16), Cut.COLUMNS),
    }
    for rule, (shape, how) in rules.items():
        if not rule.commutes(tp, arch):
            assert groups % tp
            continue
        parts = [torch.rand(part) for part in rule.part_shapes(shape, arch)]
        merged = rule.merge(parts, arch)
        assert merged.shape == shape
        assert all(map(torch.equal, rule.split(merged, arch), parts))
        pieces = []
        for rank in range(tp):
            cuts = zip(parts, rule.part_cuts(how), strict=True)
            slices = [cut(part, c, Shard(rank, tp)) for part, c in cuts]
            pieces.append(rule.merge(slices, arch))
            assert torch.equal(pieces[-1], cut(merged, how, Shard(rank, tp)))
        assert torch.equal(join(pieces, how), merged)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_rule_of_a_family_is_used_by_some_architecture(family, golden_arch):
    """So that a misspelt parameter name in a rule cannot lie there unused."""
    from llm_ckpt.arch import parse_arch

    used = set()
    for is_tied in (False, True):
        document = golden_arch(f"{family.name}_tiny")
        document["tie_embeddings"] = is_tied
        document["attention"] |= {"qkv_bias": True, "out_bias": True}
        document["mlp"]["bias"] = True
        table = family.table(parse_arch(document, where="test"))
        used |= {entry.rule for entry in table.entries.values()}
    assert used == set(family.rules)


def test_golden_files_parse(golden_text):
    assert parse_arch_text(golden_text("llama_tiny"), where="golden").family == "llama"
