"""References of a mixture of experts' operators: transformers, megatron-core, torch, by hand."""

import pytest
import torch

from llm_kernels_npu import kernels
from llm_kernels_npu.errors import CallRefusedError
from llm_kernels_npu.ops.grouped_matmul.reference import grouped_matmul
from llm_kernels_npu.ops.permute.reference import permute
from llm_kernels_npu.ops.router_topk.reference import router_topk
from llm_kernels_npu.ops.unpermute.reference import unpermute
from llm_kernels_npu.select import load

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def spread(weights, experts, count):
    """[N, E], so that the order among the chosen does not matter."""
    return torch.zeros(len(weights), count).scatter(1, experts, weights)


def test_router_with_bias_and_groups_equals_transformers_deepseek_v3(seed):
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    config = DeepseekV3Config(
        hidden_size=8, n_routed_experts=24, num_experts_per_tok=4, n_group=6, topk_group=3,
        routed_scaling_factor=2.5, norm_topk_prob=True,
    )  # fmt: skip
    theirs = DeepseekV3TopkRouter(config)
    theirs.weight.data = torch.randn(24, 8, generator=seed)
    theirs.e_score_correction_bias = torch.randn(24, generator=seed) / 4
    hidden = torch.randn(40, 8, generator=seed)
    logits, weights, experts = theirs(hidden)
    found = router_topk(
        logits, top_k=4, score="sigmoid", bias=theirs.e_score_correction_bias, groups=6,
        top_groups=3, normalize=True, scaling=2.5,
    )  # fmt: skip
    expected = spread(weights.detach(), experts, 24)
    torch.testing.assert_close(spread(found[0].detach(), found[1], 24), expected, **CLOSE)


def test_softmax_router_equals_transformers_qwen3_moe(seed):
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

    config = Qwen3MoeConfig(
        hidden_size=8, num_experts=12, num_experts_per_tok=3, norm_topk_prob=True
    )
    theirs = Qwen3MoeTopKRouter(config)
    theirs.weight.data = torch.randn(12, 8, generator=seed)
    hidden = torch.randn(20, 8, generator=seed)
    _, weights, experts = theirs(hidden)
    logits = torch.nn.functional.linear(hidden, theirs.weight)
    found = router_topk(logits, top_k=3, normalize=True)
    assert torch.equal(found[1], experts)
    torch.testing.assert_close(found[0], weights, **CLOSE)


def test_group_limited_softmax_equals_transformers_deepseek_v2(seed):
    from transformers import DeepseekV2Config
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter

    config = DeepseekV2Config(
        hidden_size=8, num_attention_heads=1, num_key_value_heads=1, n_routed_experts=24,
        num_experts_per_tok=4, n_group=4, topk_group=2,
        topk_method="group_limited_greedy", routed_scaling_factor=3.0, norm_topk_prob=False,
    )  # fmt: skip
    theirs = DeepseekV2TopkRouter(config)
    theirs.weight.data = torch.randn(24, 8, generator=seed)
    hidden = torch.randn(30, 8, generator=seed)
    _, weights, experts = theirs(hidden)
    logits = torch.nn.functional.linear(hidden, theirs.weight)
    found = router_topk(logits, top_k=4, groups=4, top_groups=2, group_score="max", scaling=3.0)
    expected = spread(weights.detach(), experts, 24)
    torch.testing.assert_close(spread(found[0].detach(), found[1], 24), expected, **CLOSE)


def test_equal_scores_go_to_the_lowest_index():
    # Experts 1, 3, 4 tie for the best; groups of two tie as well, the first two are kept.
    logits = torch.tensor([[0.0, 1.0, 0.0, 1.0, 1.0, 0.0]])
    assert router_topk(logits, top_k=2)[1].tolist() == [[1, 3]]
    found = router_topk(logits, top_k=3, groups=3, top_groups=2)[1]
    assert found.tolist() == [[1, 3, 0]]


def test_permute_equals_megatron_core(seed):
    from megatron.core.transformer.moe import moe_utils

    tokens = torch.randn(11, 6, generator=seed)
    experts = torch.rand(11, 5, generator=seed).topk(2, dim=1).indices
    probs = torch.rand(11, 2, generator=seed)
    routing_map = torch.zeros(11, 5, dtype=torch.bool).scatter(1, experts, value=True)
    copies, rows = permute(tokens, experts)
    theirs, _, index = moe_utils.permute(tokens, routing_map)
    assert torch.equal(copies, theirs)
    processed = copies * torch.arange(1.0, len(copies) + 1)[:, None]
    back = moe_utils.unpermute(
        processed, index, tokens.shape, probs=spread(probs, experts, 5), routing_map=routing_map
    )
    torch.testing.assert_close(unpermute(processed, rows, probs), back, **CLOSE)


def test_rows_of_a_permutation_by_hand():
    """The example in torch_npu's documentation of npu_moe_token_permute."""
    experts = torch.tensor([[0, 4], [4, 3], [4, 2], [1, 1]])
    tokens = torch.tensor([[1.0], [2.0], [3.0], [0.0]])
    copies, rows = permute(tokens, experts)
    assert copies[:, 0].tolist() == [1, 0, 0, 3, 2, 1, 2, 3]
    assert rows.tolist() == [0, 5, 6, 4, 7, 3, 1, 2]


def test_unpermute_undoes_permute(seed):
    tokens = torch.randn(9, 4, generator=seed)
    copies, rows = permute(tokens, torch.rand(9, 6, generator=seed).topk(3, dim=1).indices)
    found = unpermute(copies, rows, torch.full((9, 3), 1 / 3))
    torch.testing.assert_close(found, tokens, **CLOSE)


def test_grouped_matmul_equals_torch_grouped_mm(seed):
    x = torch.randn(24, 16, generator=seed).bfloat16()
    weight = torch.randn(4, 16, 8, generator=seed).bfloat16()
    sizes = torch.tensor([8, 0, 13, 3])
    theirs = torch._grouped_mm(x, weight, offs=sizes.cumsum(0, dtype=torch.int32))
    torch.testing.assert_close(grouped_matmul(x, weight, sizes), theirs, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_matmul_takes_sizes_as_a_list_and_empty_groups_get_no_gradient(
    backend, dtype, seed
):
    run = load("grouped_matmul", backend)[0]
    x = torch.randn(5, 16, generator=seed).to(dtype)
    weight = torch.randn(3, 16, 8, generator=seed).to(dtype).requires_grad_()
    found = run(x, weight, [2, 0, 3])
    torch.testing.assert_close(found[:2], x[:2] @ weight[0], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found[2:], x[2:] @ weight[2], rtol=1e-2, atol=1e-2)
    found.sum().backward()
    assert weight.grad is not None
    assert weight.grad[1].eq(0).all()
    expected = x[2:].float().sum(0)[:, None].expand(16, 8)
    torch.testing.assert_close(weight.grad[2].float(), expected, rtol=2e-2, atol=2e-2)


WRONG = {
    "sizes-sum": ("grouped_matmul", (torch.ones(4, 3), torch.ones(2, 3, 5), [1, 2]), "sum to 3"),
    "sizes-below-0": ("grouped_matmul", (torch.ones(4, 3), torch.ones(2, 3, 5), [5, -1]), "below"),
    "sizes-count": ("grouped_matmul", (torch.ones(4, 3), torch.ones(2, 3, 5), [4]), "1 entries"),
    "sizes-dtype": (
        "grouped_matmul",
        (torch.ones(4, 3), torch.ones(2, 3, 5), torch.tensor([2.0, 2.0])),
        "group_sizes is float32",
    ),
    "weight": ("grouped_matmul", (torch.ones(4, 3), torch.ones(2, 4, 5), [2, 2]), r"\[E, K, N\]"),
    "experts": ("permute", (torch.ones(4, 3), torch.zeros(5, 2).long()), r"want \[N, H\]"),
    "experts-dtype": ("permute", (torch.ones(4, 3), torch.zeros(4, 2)), "experts are float32"),
    "no-experts": ("permute", (torch.ones(4, 3), torch.zeros(4, 0).long()), "no columns"),
    "rows": (
        "unpermute",
        (torch.ones(8, 3), torch.arange(7), torch.ones(4, 2)),
        r"want \[N · K, H\]",
    ),
}


@pytest.mark.parametrize(("operator", "args", "match"), WRONG.values(), ids=WRONG)
def test_wrong_call_is_refused(operator, args, match):
    with pytest.raises(CallRefusedError, match=match):
        getattr(kernels(device="cpu"), operator)(*args)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"top_k": 9}, "top_k is 9, want 1 to 8"),
        ({"top_k": 3, "groups": 4, "top_groups": 1}, "want 1 to 2, the experts in reach"),
        ({"top_k": 2, "groups": 3}, "8 experts do not fall into 3 groups"),
        ({"top_k": 2, "groups": 8, "top_groups": 4}, "a group has 1 experts, want 2"),
        ({"top_k": 2, "score": "tanh"}, "score is 'tanh', want one of softmax, sigmoid"),
        ({"top_k": 2, "bias": torch.ones(7)}, r"bias of shape \(7,\), want \(8,\)"),
    ],
)
def test_wrong_router_is_refused(options, match):
    with pytest.raises(CallRefusedError, match=match):
        kernels(device="cpu").router_topk(torch.ones(3, 8), **options)
