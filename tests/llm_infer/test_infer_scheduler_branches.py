"""Sequences that branch, as those of a beam search do, beside others."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_infer.blocks import BlockManager, OutOfBlocksError
from llm_infer.scheduler import Scheduler, Sequence

SIZE = 4
MAX_RUNNING = 5
prompts = st.lists(st.integers(0, 2), min_size=1, max_size=14)
# A prompt, new tokens, branches (1: an ordinary request).
requests = st.lists(st.tuples(prompts, st.integers(1, 8), st.integers(1, 4)), max_size=6)


def sequence(number, prompt, new, num_branches):
    shared = len(prompt) // SIZE
    own = -(-(len(prompt) + new - 1) // SIZE) - shared
    return Sequence(
        id=number,
        tokens=list(prompt),
        num_prompt=len(prompt),
        num_branches=num_branches,
        most_blocks=shared + num_branches * own if num_branches > 1 else 0,
    )


def go_on(scheduler, contents, one, draw):
    """Let a sequence branch anew, and copy what is to be copied."""
    parents = [draw.randrange(len(one.texts)) for _ in range(one.num_branches)]
    tokens = [[*one.texts[at].tokens, draw.randrange(3)] for at in parents]
    for source, target in scheduler.branch(one, parents, tokens):
        contents[target] = list(contents[source])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(requests=requests, num_blocks=st.integers(20, 30), draw=st.randoms(use_true_random=False))
def test_each_branch_has_its_own_text_in_its_blocks_and_none_is_lost(requests, num_blocks, draw):
    scheduler = Scheduler(
        BlockManager(num_blocks, block_tokens=SIZE), step_tokens=9, max_running=MAX_RUNNING
    )
    contents = {}
    active = {n: (sequence(n, *request), request[1]) for n, request in enumerate(requests)}
    for one, _ in active.values():
        scheduler.add(one)
    for _ in range(400):
        if not active:
            break
        works = scheduler.schedule()
        assert works
        assert len(works) <= MAX_RUNNING
        scheduler.advance(works)
        for work in works:
            for position in range(work.start, work.stop):
                block = contents.setdefault(work.sequence.blocks[position // SIZE], [None] * SIZE)
                block[position % SIZE] = work.sequence.tokens[position]
        computed = {work.sequence.id: work for work in works if work.is_last}
        for number, work in computed.items():
            one, new = active[number]
            for text in one.texts:
                written = [token for block in text.blocks for token in contents[block]]
                assert written[: text.num_computed] == text.tokens[: text.num_computed]
            if len(work.sequence.tokens) - one.num_prompt + 1 >= new:
                scheduler.remove(one)
                del active[number]
            elif one.num_branches == 1:
                one.tokens.append(draw.randrange(3))
            else:
                go_on(scheduler, contents, one, draw)
    assert not active, "some request starved"
    assert scheduler.blocks.num_available == num_blocks


def test_blocks_set_aside_are_nobody_elses():
    blocks = BlockManager(4, block_tokens=SIZE)
    blocks.reserve(3)
    with pytest.raises(OutOfBlocksError, match="2 blocks wanted, 1 available"):
        blocks.allocate(2)
    blocks.unreserve(1)
    assert len(blocks.allocate(2)) == 2
    with pytest.raises(ValueError, match="3 blocks let go, 2 were set aside"):
        blocks.unreserve(3)
