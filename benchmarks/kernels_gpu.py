"""Our Triton kernels against liger-kernel's on a CUDA device: forward with backward, bfloat16.

Both sides run in turn on the same tensors, after their outputs were compared; medians. Rows are as
many as make a tensor of 128 MiB or more, so that no cache holds it. Without a CUDA device or
without liger-kernel it says so, measures nothing and exits 0.

    .venv/bin/python benchmarks/kernels_gpu.py --rounds 30
"""

import argparse
import importlib.util
import statistics
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from kernels.duels import DTYPE, DUELS, LOSSES, Duel, Outputs, Size, plain_linear_cross_entropy
from kernels.tables import Peak, Row, memory_table, speed_table
from torch import Tensor

HIDDEN = (2048, 4096, 8192, 16_384)
VOCAB = (32_768, 65_536, 131_072, 152_064)
ELEMENTS = 64 * 2**20
WARM_UP = 5
LARGEST_DIFFERENCE = 2e-2


def why_not_measured() -> str | None:
    """What is missing here, or None."""
    if not torch.cuda.is_available():
        return "no CUDA device (torch.cuda.is_available() is false)"
    if importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed: pip install liger-kernel"
    return None


def step(run: Callable[..., Outputs], leaves: Sequence[Tensor]) -> Callable[[], None]:
    """Forward with backward, with the same gradient of the outputs each time."""
    wanted = [x for x in leaves if x.requires_grad]
    upstream = [torch.ones_like(out) for out in run(*leaves)]

    def once() -> None:
        torch.autograd.grad(run(*leaves), wanted, upstream)

    return once


def microseconds(steps: Sequence[Callable[[], object]], *, rounds: int) -> list[float]:
    """The median of each step, run in turn; times are the device's own."""
    times: list[list[float]] = [[] for _ in steps]
    for turn in range(WARM_UP + rounds):
        for index, once in enumerate(steps):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            once()
            end.record()
            end.synchronize()
            if turn >= WARM_UP:
                times[index].append(start.elapsed_time(end) * 1000)
    return [statistics.median(found) for found in times]


def require_agreement(duel: Duel, liger: ModuleType, size: Size, device: str) -> None:
    """Raise SystemExit where the two do not compute the same."""
    leaves = duel.make(size, device)
    # The peer writes over some of what it is given.
    copies = [x.detach().clone().requires_grad_(x.requires_grad) for x in leaves]
    found, wanted = duel.ours(*leaves), duel.peer(liger, *duel.for_peer(copies))
    found, wanted = [x.detach() for x in found], [x.detach() for x in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        apart = float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())
        if not apart <= LARGEST_DIFFERENCE:
            raise SystemExit(
                f"{duel.operator} {size}: outputs differ by {apart:.1e} of the largest"
            )


def fight(duel: Duel, liger: ModuleType, size: Size, *, rounds: int) -> Row:
    """Compare both sides' outputs on fewer rows, then their times."""
    require_agreement(duel, liger, Size(64, size.width, size.inner), "cuda")
    leaves = duel.make(size, "cuda")
    theirs = duel.for_peer(leaves)
    steps = (step(duel.ours, leaves), step(lambda *args: duel.peer(liger, *args), theirs))
    ours_us, peer_us = microseconds(steps, rounds=rounds)
    moved = None if duel.passes is None else duel.passes * leaves[0].nbytes
    return Row(duel.operator, str(size), ours_us, peer_us, moved)


def copy_bytes_per_s(*, rounds: int) -> float:
    """What a copy on the device moves, read and written."""
    source = torch.empty(2**29, dtype=DTYPE, device="cuda")
    target = torch.empty_like(source)
    (median_us,) = microseconds([lambda: target.copy_(source)], rounds=rounds)
    return 2 * source.nbytes / (median_us * 1e-6)


def peaks(liger: ModuleType, size: Size, *, rounds: int) -> list[Peak]:
    """Time and peak memory of the linear cross entropy: plain, ours, the peer's."""
    duel = next(duel for duel in LOSSES if duel.operator == "linear_cross_entropy")
    leaves = duel.make(size, "cuda")
    ways = {
        "plain": plain_linear_cross_entropy,
        "ours": duel.ours,
        "liger": lambda *args: duel.peer(liger, *args),
    }
    found: list[Peak] = []
    for name, run in ways.items():
        once = step(run, leaves)
        (median_us,) = microseconds([once], rounds=rounds)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        once()
        torch.cuda.synchronize()
        found.append(Peak(name, median_us, torch.cuda.max_memory_allocated() - before))
    return found


def main() -> None:
    """Measure every operator at every size and print the tables, or why there are none."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    reason = why_not_measured()
    if reason is not None:
        print(f"not measured: {reason}")
        return
    liger = importlib.import_module("liger_kernel.transformers.functional")
    bandwidth = copy_bytes_per_s(rounds=rounds)
    print(f"{torch.cuda.get_device_name()}, copy {bandwidth / 1e9:,.0f} GB/s, {rounds} rounds\n")
    sizes = [(duel, Size(ELEMENTS // hidden, hidden)) for duel in DUELS for hidden in HIDDEN]
    sizes += [(duel, Size(4096, vocab)) for duel in LOSSES for vocab in VOCAB]
    rows = [fight(duel, liger, size, rounds=rounds) for duel, size in sizes]
    print(speed_table(rows, bandwidth))
    for vocab in VOCAB:
        plain, *others = peaks(liger, Size(8192, vocab), rounds=rounds)
        print(f"\n8192 tokens, hidden 4096, vocabulary {vocab}\n")
        print(memory_table(plain, others))


if __name__ == "__main__":
    main()
