"""Who holds which block of the cache, beside a plain count; blocks named by their tokens."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llm_infer.blocks import BlockManager, OutOfBlocksError, chain

NUM_BLOCKS, BLOCK_TOKENS = 9, 4


def digests_of(text):
    """Names of a text's blocks; each letter stands for a full block."""
    names, previous = [], b""
    for letter in text:
        previous = chain(previous, [ord(letter)] * BLOCK_TOKENS)
        names.append(previous)
    return names


class Workload(RuleBasedStateMachine):
    """Texts come, share, grow and go; a plain model beside it counts who holds what."""

    def __init__(self):
        super().__init__()
        self.manager = BlockManager(NUM_BLOCKS, block_tokens=BLOCK_TOKENS)
        self.held = []  # one list of blocks a sequence
        self.content = {}  # what was written into a block

    @rule(text=st.text("ab", min_size=1, max_size=5))
    def start(self, text):
        digests = digests_of(text)
        found = self.manager.num_found(digests)
        available, cost = self.manager.num_available, len(text) - found
        needed = cost + self.manager.num_needed_to_share(digests[:found])
        if needed > available:
            return
        blocks = self.manager.share(digests[:found])
        for block, letters in zip(blocks, range(1, found + 1), strict=True):
            assert self.content[block] == text[:letters], "a shared block holds another text"
        new = self.manager.allocate(cost, after=blocks[-1] if blocks else None)
        assert not set(new) & {block for one in self.held for block in one}
        blocks += new
        assert self.manager.num_available == available - needed
        for index, block in enumerate(blocks):
            self.content[block] = text[: index + 1]
            self.manager.publish(block, digests[index])
        self.held.append(blocks)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def grow(self, data):
        blocks = data.draw(st.sampled_from(self.held))
        if self.manager.num_available:
            blocks += self.manager.allocate(1, after=blocks[-1] if blocks else None)
            self.content[blocks[-1]] = None

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def fork(self, data):
        blocks = data.draw(st.sampled_from(self.held))
        common = blocks[: data.draw(st.integers(0, len(blocks)))]
        available = self.manager.num_available
        self.manager.hold(common)
        assert self.manager.num_available == available
        self.held.append(list(common))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def stop(self, data):
        index = data.draw(st.integers(0, len(self.held) - 1))
        self.manager.release(self.held.pop(index))

    @rule()
    def too_many(self):
        before = self.manager.num_available
        with pytest.raises(OutOfBlocksError):
            self.manager.allocate(before + 1)
        assert self.manager.num_available == before

    @invariant()
    def every_holder_is_counted_and_no_block_is_lost(self):
        counts = [sum(block in one for one in self.held) for block in range(NUM_BLOCKS)]
        assert [self.manager.num_holders(block) for block in range(NUM_BLOCKS)] == counts
        assert self.manager.num_available == counts.count(0)


TestWorkload = Workload.TestCase
TestWorkload.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True
)


def test_a_digest_names_all_tokens_before_it():
    assert chain(chain(b"", [1, 2]), [3, 4]) != chain(chain(b"", [9, 2]), [3, 4])
    assert chain(b"", [1, 2]) == chain(b"", [1, 2])
    assert chain(b"", [1, 2]) != chain(b"", [12])


def test_a_block_released_twice_is_an_error():
    manager = BlockManager(4, block_tokens=2)
    blocks = manager.allocate(2)
    manager.release(blocks)
    with pytest.raises(ValueError, match=f"block {blocks[1]}: released more often"):
        manager.release(blocks)


def test_what_was_not_used_for_longest_goes_first_and_its_end_before_its_start():
    manager = BlockManager(4, block_tokens=BLOCK_TOKENS)
    for text in ("ab", "xy"):
        blocks = manager.allocate(2)
        for block, digest in zip(blocks, digests_of(text), strict=True):
            manager.publish(block, digest)
        manager.release(blocks)
    manager.release(manager.share(digests_of("ab")))  # used again: now younger than xy
    manager.allocate(1)
    assert (manager.num_found(digests_of("ab")), manager.num_found(digests_of("xy"))) == (2, 1)
    manager.allocate(1)
    assert (manager.num_found(digests_of("ab")), manager.num_found(digests_of("xy"))) == (2, 0)


def test_sequences_that_grow_by_turns_stay_in_one_run_each():
    manager = BlockManager(64, block_tokens=1)
    sequences = [manager.allocate(3) for _ in range(4)]
    for _ in range(4):
        for blocks in sequences:
            blocks += manager.allocate(1, after=blocks[-1])
    for blocks in sequences:
        assert blocks == list(range(blocks[0], blocks[0] + 7))


def test_texts_lie_in_one_run_each_in_a_cache_full_of_old_ones():
    draw, manager = random.Random(0), BlockManager(256, block_tokens=1)
    running, digest = [], b""
    scattered = grown = 0
    for _ in range(3000):
        if len(running) < 16:
            running.append((manager.allocate(draw.randint(1, 4)), draw.randint(1, 2)))
        blocks, more = running.pop(draw.randrange(len(running)))
        if more:
            blocks += manager.allocate(1, after=blocks[-1])
            running.append((blocks, more - 1))
            grown += 1
            scattered += blocks[-1] - blocks[0] != len(blocks) - 1
            continue
        for block in blocks:
            digest = chain(digest, [1])
            manager.publish(block, digest)
        manager.release(blocks)
    assert manager.num_kept > 128
    # Nearly all are where nothing is evicted for a gap.
    assert scattered < 0.15 * grown


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0)])
def test_a_cache_without_room_is_refused(sizes):
    with pytest.raises(ValueError, match="want at least 1 each"):
        BlockManager(sizes[0], block_tokens=sizes[1])
