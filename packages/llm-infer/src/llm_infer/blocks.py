"""The key-value cache's accounting: blocks of tokens, shared by equal prefixes, evicted by age.

Blocks are numbers; the tensors they stand for are elsewhere. A block is in one of three states:
held (one or more sequences use it), kept (nobody uses it, its content is known and may be found
again) or free. Content is named by a chain of digests, so that equal names mean equal tokens from
the start of the text (as in vLLM's automatic prefix caching).
"""

import hashlib
import re
from array import array
from collections import OrderedDict
from collections.abc import Sequence

Digest = bytes
"""Names the tokens of a block and of all blocks before it."""

_RUNS = re.compile(b"\x01+")
# So many blocks a text should be able to grow by in its run, if the cache has `_ROOMS` times that.
_ROOM = 2
_ROOMS = 16


class OutOfBlocksError(RuntimeError):
    """More blocks are wanted than are free; the caller must give some back first."""


def chain(previous: Digest, tokens: Sequence[int]) -> Digest:
    """The digest of a block of `tokens` after the blocks that `previous` names (b"" at first)."""
    return hashlib.blake2b(array("q", tokens).tobytes(), key=previous, digest_size=32).digest()


class BlockManager:
    """Who holds which block. Every block taken must be released as often as it was taken."""

    def __init__(self, num_blocks: int, *, block_tokens: int) -> None:
        if num_blocks < 1 or block_tokens < 1:
            raise ValueError(
                f"cache: found {num_blocks} blocks of {block_tokens} tokens, want at least 1 each"
            )
        self.num_blocks, self.block_tokens = num_blocks, block_tokens
        self._holders = [0] * num_blocks
        self._is_free = bytearray(b"\x01" * num_blocks)
        self._num_free = num_blocks
        self._num_reserved = 0
        # Kept blocks, the one to evict first at the front.
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._block_of: dict[Digest, int] = {}
        self._digest_of: dict[int, Digest] = {}

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give."""
        return self._num_free + len(self._kept) - self._num_reserved

    @property
    def num_kept(self) -> int:
        """Blocks that nobody uses and whose content may be found again."""
        return len(self._kept)

    def num_holders(self, block: int) -> int:
        """How many times a block is held."""
        return self._holders[block]

    def num_found(self, digests: Sequence[Digest]) -> int:
        """How many leading blocks of a text are in the cache."""
        count = 0
        while count < len(digests) and digests[count] in self._block_of:
            count += 1
        return count

    def num_needed_to_share(self, digests: Sequence[Digest]) -> int:
        """How much `num_available` falls when `share` is called with these."""
        return sum(self._holders[self._block_of[digest]] == 0 for digest in digests)

    def share(self, digests: Sequence[Digest]) -> list[int]:
        """Take blocks that are in the cache; KeyError for one that is not."""
        blocks = [self._block_of[digest] for digest in digests]
        for block in blocks:
            if self._holders[block] == 0:
                del self._kept[block]
            self._holders[block] += 1
        return blocks

    def hold(self, blocks: Sequence[int]) -> None:
        """Take blocks once more that somebody holds. ValueError, taking none, for another one."""
        for block in blocks:
            if self._holders[block] == 0:
                raise ValueError(f"block {block}: held by nobody, so what is in it is not known")
        for block in blocks:
            self._holders[block] += 1

    def reserve(self, count: int) -> None:
        """Set so many blocks aside, whichever they are. OutOfBlocksError when too few are free."""
        self._require(count)
        self._num_reserved += count

    def unreserve(self, count: int) -> None:
        """Let so many of those go, to be allocated. ValueError where fewer were set aside."""
        if count > self._num_reserved:
            raise ValueError(f"{count} blocks let go, {self._num_reserved} were set aside")
        self._num_reserved -= count

    def allocate(self, count: int, *, after: int | None = None) -> list[int]:
        """Take `count` blocks, in one run behind block `after` or with room behind where possible.

        What the cache has not used for longest is evicted when nothing else is free, or no gap has
        room. Raises OutOfBlocksError, taking none, when too few are available.
        """
        self._require(count)
        while self._num_free < count:
            self._evict()
        taken: list[int] = []
        while len(taken) < count:
            last = taken[-1] if taken else after
            is_next = last is not None and last + 1 < self.num_blocks and self._is_free[last + 1]
            block = last + 1 if last is not None and is_next else self._start(count - len(taken))
            self._is_free[block] = 0
            self._holders[block] = 1
            self._num_free -= 1
            taken.append(block)
        return taken

    def publish(self, block: int, digest: Digest) -> None:
        """Say what a held, full block contains, so that others find it.

        The first block of a content stays the one that is found.
        """
        if self._holders[block] == 0:
            raise ValueError(f"block {block}: published by nobody who holds it")
        if digest not in self._block_of and block not in self._digest_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def release(self, blocks: Sequence[int]) -> None:
        """Give back blocks of one sequence, in its order. ValueError for one that is not held."""
        # The end of a text is of use to fewer others than its start: it is evicted first.
        for block in reversed(blocks):
            if self._holders[block] == 0:
                raise ValueError(f"block {block}: released more often than it was taken")
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._retire(block)

    def forget(self) -> None:
        """Drop all kept content."""
        while self._kept:
            self._evict()

    def _require(self, count: int) -> None:
        if count > self.num_available:
            raise OutOfBlocksError(f"{count} blocks wanted, {self.num_available} available")

    def _retire(self, block: int) -> None:
        if block in self._digest_of:
            self._kept[block] = None
        else:
            self._free(block)

    def _evict(self) -> None:
        block, _ = self._kept.popitem(last=False)
        del self._block_of[self._digest_of.pop(block)]
        self._free(block)

    def _free(self, block: int) -> None:
        self._is_free[block] = 1
        self._num_free += 1

    def _start(self, count: int) -> int:
        """Where a run begins: in the largest gap, leaving half of what is left to who is before.

        Attention reads a run where it lies and copies anything else for every token, so kept blocks
        are evicted for a gap with room to grow: up to twice as many as the gap has.
        """
        wanted = count + min(max(count // 2, _ROOM), self.num_blocks // _ROOMS)
        gap = self._largest_gap()
        for _ in range(2 * wanted):
            if len(gap) >= wanted or not self._kept:
                break
            self._evict()
            gap = self._largest_gap()
        is_alone = gap.start == 0 or self._holders[gap.start - 1] == 0
        return gap.start if is_alone else gap.start + max(0, len(gap) - count) // 2

    def _largest_gap(self) -> range:
        gaps = (range(*run.span()) for run in _RUNS.finditer(self._is_free))
        return max(gaps, key=len)
