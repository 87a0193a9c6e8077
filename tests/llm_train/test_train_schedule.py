"""Batch sizes and learning rates over a run, against megatron-core's calculator and by hand."""

import math
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_train.batches import Batch, BatchSizes
from llm_train.config import BatchRamp, OptimizerConfig


@pytest.fixture(scope="module", autouse=True)
def _warm():
    import fork_ranks

    fork_ranks.warm()


@settings(deadline=None, max_examples=50)
@given(
    start=st.integers(1, 12),
    increment=st.integers(1, 6),
    growths=st.integers(1, 7),
    samples=st.integers(1, 150),
)
def test_a_ramp_takes_what_megatron_core_calculates(start, increment, growths, samples):
    from megatron.core.num_microbatches_calculator import RampupBatchsizeNumMicroBatchesCalculator

    full = start + increment * growths
    theirs = RampupBatchsizeNumMicroBatchesCalculator(
        full, 1, 1, False, 1, start, increment, samples
    )
    ours = BatchSizes(
        global_batch_size=full, ramp=BatchRamp(start=start, increment=increment, samples=samples)
    )
    consumed, step = 0, 0
    while consumed < samples + 3 * full:
        theirs.update(consumed, True)
        size = theirs.get_current_global_batch_size()
        assert list(ours.steps(step, step + 1)) == [Batch(first=consumed, size=size)]
        assert size in ours.sizes()
        consumed, step = consumed + size, step + 1
        assert ours.consumed(step) == consumed


def test_a_constant_batch_is_found_without_walking_there():
    sizes = BatchSizes(global_batch_size=512)
    assert sizes.consumed(10**12) == 512 * 10**12
    assert list(sizes.steps(10**12, 10**12 + 1)) == [Batch(first=512 * 10**12, size=512)]


def rates(steps, **optimizer_settings):
    """The learning rate of each of the first `steps` steps."""
    from llm_train.train.optimizer import build_schedule

    optimizer = SimpleNamespace(param_groups=[{"lr": 0.0, "weight_decay": 0.0}])
    schedule = build_schedule(OptimizerConfig(**optimizer_settings), optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        schedule.step(increment=1)
    return found


def test_wsd_rises_stays_and_falls():
    wsd = {
        "lr": 1.0,
        "min_lr": 0.2,
        "warmup_steps": 2,
        "decay_steps": 10,
        "decay": "wsd",
        "wsd_decay_steps": 4,
    }
    falling = [0.8, 0.6, 0.4, 0.2]
    assert rates(12, **wsd) == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, *falling, 0.2])
    shapes = {
        "cosine": lambda x: 0.5 * (math.cos(math.pi * x) + 1),
        "exponential": lambda x: 2 * 0.5**x - 1,
        "minus_sqrt": lambda x: 1 - math.sqrt(x),
    }
    for name, shape in shapes.items():
        wanted = [0.2 + 0.8 * shape(x) for x in (0.25, 0.5, 0.75, 1.0)]
        assert rates(11, **wsd, wsd_decay=name)[7:] == pytest.approx(wanted), name


def test_inverse_square_root_falls_with_the_root_of_the_step():
    found = rates(17, lr=1.0, warmup_steps=4, decay="inverse-square-root", decay_steps=100)
    assert found[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert (found[9], found[16]) == (pytest.approx(2 / 3), pytest.approx(0.5))
