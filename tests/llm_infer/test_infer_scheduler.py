import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_infer.blocks import BlockManager
from llm_infer.scheduler import Scheduler, Sequence


def make(num_blocks=8, block_tokens=4, step_tokens=16, max_running=4):
    manager = BlockManager(num_blocks, block_tokens=block_tokens)
    return Scheduler(manager, step_tokens=step_tokens, max_running=max_running)


def sequence(number, tokens):
    return Sequence(id=number, tokens=list(tokens), num_prompt=len(tokens))


def step(scheduler, choose=lambda sequence: 7):
    """One step of a model that always says `choose`."""
    works = scheduler.schedule()
    scheduler.advance(works)
    for work in works:
        if work.is_last:
            work.sequence.tokens.append(choose(work.sequence))
    return works


prompts = st.lists(st.integers(0, 2), min_size=1, max_size=14)
requests = st.lists(st.tuples(prompts, st.integers(1, 8), st.integers(0, 6)), max_size=7)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    requests=requests,
    num_blocks=st.integers(6, 12),
    max_running=st.integers(1, 4),
    extra=st.integers(0, 9),
)
def test_all_end_within_a_bound_of_steps_and_no_step_is_over_its_limits(
    requests, num_blocks, max_running, extra
):
    scheduler = make(num_blocks, 4, max_running + extra, max_running)
    in_order = sorted(requests, key=lambda request: request[2])
    waiting = [(start, sequence(n, p), len(p) + new) for n, (p, new, start) in enumerate(in_order)]
    # Even one after the other, a prompt by single tokens, and each preempted by all older ones.
    bound = 7 + sum(length for _, _, length in waiting) * (len(waiting) + 1)
    active, done = [], []
    for number in range(bound):
        for item in [item for item in waiting if item[0] <= number]:
            waiting.remove(item)
            scheduler.add(item[1])
            active.append(item)
        if not active and not waiting:
            break
        works = scheduler.schedule()
        assert sum(work.stop - work.start for work in works) <= max_running + extra
        assert len(works) <= max_running
        assert len({work.sequence.id for work in works}) == len(works)
        assert works or not active
        if active:
            oldest = min(one.id for _, one, _ in active)
            assert oldest in [work.sequence.id for work in works], "the oldest always goes on"
        for work in works:
            assert work.start == work.sequence.num_computed < work.stop
            assert len(work.sequence.blocks) * 4 >= work.stop
        scheduler.advance(works)
        for work in works:
            if work.is_last:
                work.sequence.tokens.append(work.sequence.id % 3)
        for item in [item for item in active if len(item[1].tokens) >= item[2]]:
            scheduler.remove(item[1])
            active.remove(item)
            done.append(item[1].id)
    assert len(done) == len(requests), "some request starved"
    assert scheduler.blocks.num_available == num_blocks


def test_a_long_prompt_comes_in_parts_while_others_go_on():
    scheduler = make(num_blocks=20, step_tokens=6)
    short, long = sequence(0, [1, 2]), sequence(1, range(20))
    scheduler.add(short)
    step(scheduler)
    scheduler.add(long)
    spans = [[(w.sequence.id, w.start, w.stop) for w in step(scheduler)] for _ in range(4)]
    assert spans == [
        [(0, 2, 3), (1, 0, 5)],
        [(0, 3, 4), (1, 5, 10)],
        [(0, 4, 5), (1, 10, 15)],
        [(0, 5, 6), (1, 15, 20)],
    ]


def test_an_equal_prefix_is_computed_once_and_waits_for_the_one_who_computes_it():
    scheduler = make(num_blocks=20, step_tokens=8)
    first, second = sequence(0, range(12)), sequence(1, [*range(8), 50, 51])
    scheduler.add(first)
    scheduler.add(second)
    assert [work.sequence.id for work in step(scheduler)] == [0]
    works = step(scheduler)
    assert [(w.sequence.id, w.start, w.stop) for w in works] == [(0, 8, 12), (1, 8, 10)]
    assert second.blocks[:2] == first.blocks[:2]
    assert second.num_shared == 8
    assert [scheduler.blocks.num_holders(block) for block in first.blocks[:3]] == [2, 2, 1]


def test_a_whole_prompt_in_the_cache_still_computes_its_last_block():
    scheduler = make()
    first = sequence(0, range(8))
    scheduler.add(first)
    step(scheduler)
    scheduler.remove(first)
    scheduler.add(again := sequence(1, range(8)))
    (work,) = step(scheduler)
    assert (work.start, work.stop, again.num_shared) == (4, 8, 4)


def test_the_youngest_gives_way_and_finds_its_blocks_again():
    scheduler = make(num_blocks=4, block_tokens=4, step_tokens=32)
    old, young = sequence(0, range(7)), sequence(1, range(20, 28))
    scheduler.add(old)
    scheduler.add(young)
    step(scheduler)  # both hold two blocks; nothing is left
    step(scheduler)  # the young one needs a third, and there is nobody younger
    assert scheduler.num_preempted == 1
    assert (young.blocks, young.num_computed) == ([], 0)
    scheduler.remove(old)
    (work,) = step(scheduler)
    assert (work.sequence, work.start) == (young, 8)


def test_variants_do_not_share():
    scheduler = make(num_blocks=20)
    scheduler.add(first := sequence(0, range(8)))
    step(scheduler)
    other = sequence(1, range(8))
    other.variant = b"long"
    scheduler.add(other)
    assert [(w.sequence.id, w.start) for w in step(scheduler)] == [(0, 8), (1, 0)]
    scheduler.restart(first, variant=b"long")
    assert (first.num_computed, scheduler.num_running) == (0, 1)


def test_what_can_never_fit_is_refused_at_once():
    scheduler = make(num_blocks=2, block_tokens=4)
    with pytest.raises(ValueError, match="8 tokens and one more do not fit into a cache of 2"):
        scheduler.add(sequence(0, range(8)))
    with pytest.raises(ValueError, match="without tokens"):
        scheduler.add(sequence(0, []))


def test_limits_that_would_starve_are_refused():
    with pytest.raises(ValueError, match=r"max_running\(9\) and step_tokens\(4\)"):
        make(step_tokens=4, max_running=9)
