"""The references of what training adds to a model: parallel loss, gradient sums, AdamW, rings."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional

from llm_kernels_npu.errors import CallRefusedError
from llm_kernels_npu.ops.adamw.limits import LIMITS as ADAMW_LIMITS
from llm_kernels_npu.ops.adamw.reference import adamw
from llm_kernels_npu.ops.matmul_add.reference import matmul_add
from llm_kernels_npu.ops.ring_attention_update.reference import ring_attention_update
from llm_kernels_npu.select import Choice, bind, load

RANKS, ROWS, WORDS = 2, 9, 32
SETTINGS = {"lr": 0.05, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


def whole_batch():
    """The logits of all words, targets with two to ignore, and weights of the losses."""
    seed = torch.Generator().manual_seed(5)
    targets = torch.randint(WORDS, (ROWS,), generator=seed)
    targets[[2, 7]] = -100
    logits = torch.randn(ROWS, WORDS, generator=seed) * 5
    return logits, targets, torch.randn(ROWS, generator=seed)


def one_rank(rank, file, results):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=RANKS)
    results.put((rank, [loss_and_gradient(rank, name) for name in ("reference", "torch")]))
    dist.barrier()


def loss_and_gradient(rank, backend):
    logits, targets, weights = whole_batch()
    own = logits.chunk(RANKS, 1)[rank].clone().requires_grad_()

    def reduced(operation):
        def run(x):
            dist.all_reduce(x, operation)
            return x

        return run

    losses = load("vocab_parallel_cross_entropy", backend)[0](
        own,
        targets,
        vocab_start=rank * WORDS // RANKS,
        all_reduce_max=reduced(dist.ReduceOp.MAX),
        all_reduce_sum=reduced(dist.ReduceOp.SUM),
    )
    (losses * weights).sum().backward()
    return losses.detach().tolist(), own.grad.tolist()


def test_vocab_parallel_cross_entropy_on_two_gloo_ranks_equals_torch_on_the_whole(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [
        context.Process(target=one_rank, args=(rank, tmp_path / "store", results), daemon=True)
        for rank in range(RANKS)
    ]
    for process in ranks:
        process.start()
    found = dict(results.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join(timeout=60)
    logits, targets, weights = whole_batch()
    logits.requires_grad_()
    theirs = functional.cross_entropy(logits, targets, reduction="none")
    (theirs * weights).sum().backward()
    for rank, gradient in enumerate(logits.grad.chunk(RANKS, 1)):
        for losses, own_gradient in found[rank]:
            torch.testing.assert_close(torch.tensor(losses), theirs, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(torch.tensor(own_gradient), gradient, rtol=1e-5, atol=1e-6)


def test_vocab_parallel_cross_entropy_of_a_far_rank_survives_large_logits():
    """All of one rank's logits are far below the other's: nothing overflows or is lost."""
    logits, targets = torch.tensor([[-9e4, -9.1e4]]), torch.tensor([5])
    for backend in ("reference", "torch"):
        loss = load("vocab_parallel_cross_entropy", backend)[0](
            logits,
            targets,
            vocab_start=0,
            all_reduce_max=lambda x: torch.maximum(x, torch.tensor([9e4])),
            all_reduce_sum=lambda x: x + torch.tensor([[1.0], [9e4]]),
        )
        assert loss.item() == 0.0


def test_vocab_parallel_cross_entropy_keeps_the_logits_and_no_softmax():
    kept = []

    def note(x):
        kept.append((x.data_ptr(), x.nbytes))
        return x

    logits = torch.randn(64, 128).bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        load("vocab_parallel_cross_entropy", "torch")[0](
            logits,
            torch.zeros(64, dtype=torch.int64),
            vocab_start=0,
            all_reduce_max=lambda x: x,
            all_reduce_sum=lambda x: x,
        )
    assert [pointer for pointer, size in kept if size >= logits.nbytes] == [logits.data_ptr()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matmul_add_equals_the_gradient_torch_gives_a_linear_layer(seed, dtype):
    layer = torch.nn.Linear(5, 7, bias=False)
    x = torch.randn(11, 5, generator=seed).to(dtype).float()
    y_grad = torch.randn(11, 7, generator=seed).to(dtype).float()
    layer(x).backward(y_grad)
    before = torch.randn(7, 5, generator=seed)
    found = before.clone()
    assert matmul_add(found, y_grad.to(dtype), x.to(dtype)) is found
    torch.testing.assert_close(found, before + layer.weight.grad, rtol=1e-6, atol=1e-6)


def test_matmul_add_keeps_what_a_16_bit_sum_would_lose():
    out = torch.full((1, 1), 256.0)
    ones = torch.ones(1, 1, dtype=torch.bfloat16)
    for backend in ("reference", "torch"):
        load("matmul_add", backend)[0](out, ones, ones)
    assert out.item() == 258.0
    assert (torch.full((1, 1), 256.0).bfloat16() + ones).item() == 256.0


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_equals_torchs_optimizer_over_five_steps(seed, decay):
    theirs = torch.nn.Parameter(torch.randn(4, 6, generator=seed))
    ours, mean, square = theirs.detach().clone(), torch.zeros(4, 6), torch.zeros(4, 6)
    optimizer = torch.optim.AdamW(
        [theirs], lr=0.05, betas=(0.9, 0.95), eps=1e-8, weight_decay=decay, foreach=False
    )
    for step in range(1, 6):
        theirs.grad = torch.randn(4, 6, generator=seed)
        optimizer.step()
        settings = {**SETTINGS, "weight_decay": decay, "step": step}
        assert adamw(ours, theirs.grad, mean, square, **settings) is ours
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(square, optimizer.state[theirs]["exp_avg_sq"])


def test_adamw_by_hand():
    # The first step's averages are the gradient and its square once corrected: lr * sign, decayed.
    param, zeros = torch.tensor([2.0, 2.0]), [torch.zeros(2) for _ in range(2)]
    adamw(param, torch.tensor([3.0, -0.5]), *zeros, step=1, **SETTINGS)
    torch.testing.assert_close(param, torch.tensor([1.99 - 0.05, 1.99 + 0.05]))


def test_fused_adamw_refuses_strides_that_it_would_walk_past():
    param, grad = torch.zeros(4, 6).T, torch.zeros(6, 4)
    call = bind(Choice(operator="adamw", backend="torch"))
    with pytest.raises(CallRefusedError, match=r"param has strides .* it: reference\)"):
        call(param, grad, grad.clone(), grad.clone(), step=1, **SETTINGS)


WRONG = {
    "half": (torch.zeros(2).half(), {}, "param is float16, want float32"),
    "leaf": (torch.zeros(2).requires_grad_(), {}, r"call within torch.no_grad\(\)"),
    "step": (torch.zeros(2), {"step": 0}, "step is 0, want 1"),
    "beta": (torch.zeros(2), {"beta2": 1.0}, "beta2 1.0, want each from 0 to less than 1"),
    "shape": (torch.zeros(3), {}, r"have shapes \[\(3,\), \(2,\)"),
}


@pytest.mark.parametrize(("param", "changed", "match"), WRONG.values(), ids=WRONG)
def test_adamw_refuses(param, changed, match):
    others = [torch.zeros(2) for _ in range(3)]
    with pytest.raises(CallRefusedError, match=match):
        bind(Choice(operator="adamw", backend="reference"))(
            param, *others, **{**SETTINGS, "step": 1, **changed}
        )
    assert set(ADAMW_LIMITS) == {"reference", "torch", "triton", "npu"}


def parts_of_attention(q, k, v, spans):
    """Each span's attention and statistics, written out: [B, T, H, D] heads as many as keys'."""
    for span in spans:
        scores = torch.einsum("bthd,bshd->bhts", q, k[:, span]) * q.shape[-1] ** -0.5
        top = scores.amax(-1)
        portions = (scores - top[..., None]).exp()
        out = torch.einsum("bhts,bshe->bthe", portions, v[:, span])
        total = portions.sum(-1)
        yield out / total.transpose(1, 2)[..., None], top, total


def test_ring_attention_update_over_three_parts_equals_torch_over_all_keys(seed):
    q, k, v = torch.randn(3, 2, 12, 3, 8, generator=seed).mul(2).unbind()
    first, *others = parts_of_attention(q, k, v, (slice(0, 5), slice(5, 6), slice(6, 12)))
    for part in others:
        first = ring_attention_update(*first, *part)
    theirs = functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    torch.testing.assert_close(first[0], theirs.transpose(1, 2), rtol=1e-5, atol=1e-5)
    scores = torch.einsum("bthd,bshd->bhts", q, k) * 8**-0.5
    torch.testing.assert_close(first[1] + first[2].log(), scores.logsumexp(-1))


def test_ring_attention_update_starts_from_nothing_and_passes_over_what_sees_nothing(seed):
    q, k, v = torch.randn(3, 1, 4, 2, 8, generator=seed).unbind()
    ((out, top, total),) = parts_of_attention(q, k, v, (slice(0, 4),))
    nothing = torch.zeros_like(out), torch.full_like(top, -torch.inf), torch.zeros_like(total)
    for one, two in ((nothing, (out, top, total)), ((out, top, total), nothing)):
        for found, expected in zip(
            ring_attention_update(*one, *two), (out, top, total), strict=True
        ):
            torch.testing.assert_close(found, expected)
    merged = ring_attention_update(*nothing, *nothing)
    assert not merged[0].any()
    assert (merged[1] == -torch.inf).all()


def test_ring_attention_update_refuses_statistics_in_16_bits():
    out, statistic = torch.zeros(1, 4, 2, 8).bfloat16(), torch.zeros(1, 2, 4)
    call = bind(Choice(operator="ring_attention_update", backend="reference"))
    with pytest.raises(CallRefusedError, match=r"new_max is \(1, 2, 4\) bfloat16 on cpu, want"):
        call(out, statistic, statistic, out, statistic.bfloat16(), statistic)
