"""Which tokens of which sequences the model computes next: continuous batching, chunked prefill.

Sequences keep the order they came in. Each step, those that only wait for their next token get one
each; what is left of the token budget goes to prompts, oldest first, a part at a time where they
are long. When blocks run out, the youngest gives its blocks back and later computes again what is
no longer in the cache, so the oldest always goes on and none starves.

A sequence may branch: several texts go on from it, in one step, over blocks that they share. Blocks
for all of them are set aside when it is admitted, so it goes on to its end.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from llm_infer.blocks import BlockManager, Digest, chain


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """A text being computed. `tokens` is the prompt and what was chosen since."""

    id: int
    tokens: list[int]
    num_prompt: int
    num_computed: int = 0
    """Tokens whose keys and values are in `blocks`."""
    blocks: list[int] = field(default_factory=list[int])
    variant: bytes = b""
    """Texts of different variants never share blocks."""
    digests: list[Digest] = field(default_factory=list[Digest])
    num_shared: int = 0
    """Tokens found in the cache when it was last admitted."""
    first_wanted: int | None = None
    """The first token after which logits are wanted; None: the last one."""
    num_branches: int = 1
    """Texts that go on from it; with several it keeps its blocks until it is removed."""
    most_blocks: int = 0
    """Blocks that it and its branches hold at most; 0 where it has none."""
    num_reserved: int = 0
    """Those of them that are set aside now."""
    branches: "list[Sequence]" = field(default_factory=list["Sequence"])
    """The texts that go on in place of it."""
    trunk: "Sequence | None" = None
    """What a branch is of."""

    @property
    def num_reusable(self) -> int:
        """Tokens that may come from the cache: those before the first one with wanted logits."""
        last = len(self.tokens) - 1
        return last if self.first_wanted is None else min(self.first_wanted, last)

    @property
    def texts(self) -> "Seq[Sequence]":
        """Itself, or its branches."""
        return self.branches or (self,)

    @property
    def num_pending(self) -> int:
        """Tokens still to compute before the next one can be chosen."""
        return len(self.tokens) - self.num_computed


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens `start` to `stop` of a sequence, to be computed in this step."""

    sequence: Sequence
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        """Whether a next token can be chosen after it."""
        return self.stop == len(self.sequence.tokens)


class Scheduler:
    """Hands out steps; `schedule` and `advance` are called in turn."""

    def __init__(self, blocks: BlockManager, *, step_tokens: int, max_running: int) -> None:
        """`step_tokens` bounds the tokens of one step, `max_running` the sequences in it."""
        if not 1 <= max_running <= step_tokens:
            raise ValueError(
                f"max_running({max_running}) and step_tokens({step_tokens}): "
                "want 1 <= max_running <= step_tokens, so that each sequence can get a token"
            )
        self.blocks = blocks
        self._step_tokens, self.max_running = step_tokens, max_running
        self._running: list[Sequence] = []
        self._waiting: list[Sequence] = []
        self.num_preempted = 0

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that hold none yet, or no more."""
        return len(self._waiting)

    @property
    def capacity_tokens(self) -> int:
        """The longest sequence that fits into the cache when it is alone."""
        return self.blocks.num_blocks * self.blocks.block_tokens

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. ValueError when it could never fit or has no tokens."""
        if not sequence.tokens:
            raise ValueError("a sequence without tokens")
        if len(sequence.tokens) >= self.capacity_tokens:
            raise ValueError(
                f"{len(sequence.tokens)} tokens and one more do not fit into a cache of "
                f"{self.blocks.num_blocks} blocks of {self.blocks.block_tokens} tokens"
            )
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or not, and give its blocks back."""
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        elif sequence in self._running:
            self._running.remove(sequence)
            self._release(sequence)

    def restart(self, sequence: Sequence, *, variant: bytes) -> None:
        """Compute a running sequence again from its start, under another variant."""
        self._running.remove(sequence)
        self._release(sequence)
        sequence.variant, sequence.digests = variant, []
        self._enqueue(sequence)

    def schedule(self) -> list[Work]:
        """The next step; empty only when there is nothing to do."""
        num_preempted, budget, works = self.num_preempted, self._step_tokens, list[Work]()
        texts = [text for one in self._running for text in one.texts]
        decoding = [one for one in texts if one.num_pending == 1]
        prefilling = [one for one in texts if one.num_pending > 1]
        for sequence in (*decoding, *prefilling):
            if budget and self._is_running(sequence) and self._grow(sequence):
                works.append(_work(sequence, budget))
                budget -= works[-1].stop - works[-1].start
        # A sequence may have lost its blocks to an older one after it was given work.
        works = [work for work in works if self._is_running(work.sequence)]
        if self.num_preempted == num_preempted:
            works += self._admit(budget)
        return works

    def advance(self, works: Seq[Work]) -> None:
        """Take note that a step was computed; full blocks can be found by others from now on."""
        for work in works:
            sequence = work.sequence
            first = sequence.num_computed // self.blocks.block_tokens
            sequence.num_computed = work.stop
            if sequence.trunk is not None:
                continue  # what one search tries out is of no use to others
            digests = self._digests(sequence)
            for index in range(first, work.stop // self.blocks.block_tokens):
                self.blocks.publish(sequence.blocks[index], digests[index])

    def branch(
        self, trunk: Sequence, parents: Seq[int], tokens: Seq[Seq[int]]
    ) -> list[tuple[int, int]]:
        """Let texts with these `tokens` go on from those of a sequence, `parents` by their places.

        Returns blocks whose content must be copied before the next step, from and to.
        """
        before, size = trunk.texts, self.blocks.block_tokens
        num_computed = before[0].num_computed
        full = num_computed // size
        for index, one in enumerate(before):
            if index not in parents:
                self.blocks.release(one.blocks)
                one.blocks = []
        self._settle(trunk, before)
        copies: list[tuple[int, int]] = []
        after: list[Sequence] = []
        for index, (parent, text) in enumerate(zip(parents, tokens, strict=True)):
            blocks = before[parent].blocks
            # The first that goes on from a text takes its blocks over, others a copy of the last.
            if parent in parents[:index]:
                source, blocks = blocks, list(blocks[:full])
                self.blocks.hold(blocks)
                if full < len(source):
                    blocks += self._set_aside(trunk, 1, after=blocks[-1] if blocks else None)
                    copies.append((source[full], blocks[full]))
            one = Sequence(
                id=trunk.id,
                tokens=list(text),
                num_prompt=trunk.num_prompt,
                num_computed=num_computed,
                blocks=blocks,
                variant=trunk.variant,
                trunk=trunk,
            )
            after.append(one)
        trunk.branches, trunk.blocks = after, []
        return copies

    def _settle(self, trunk: Sequence, texts: Seq[Sequence]) -> None:
        """Set aside again what those gave back that do not go on."""
        held = len({block for one in texts for block in one.blocks})
        count = trunk.most_blocks - held
        self.blocks.reserve(count - trunk.num_reserved)
        trunk.num_reserved = count

    def _set_aside(self, trunk: Sequence, count: int, *, after: int | None) -> list[int]:
        """Blocks of those that were."""
        self.blocks.unreserve(count)
        trunk.num_reserved -= count
        return self.blocks.allocate(count, after=after)

    def _is_running(self, sequence: Sequence) -> bool:
        return (sequence.trunk or sequence) in self._running

    @property
    def _num_places(self) -> int:
        return sum(one.num_branches for one in self._running)

    def _grow(self, sequence: Sequence) -> bool:
        """Make room for all its tokens, taking blocks from younger ones; False if it lost its own.

        A sequence that holds blocks holds them for its whole prompt, so only new tokens need room.
        """
        wanted = -(-len(sequence.tokens) // self.blocks.block_tokens) - len(sequence.blocks)
        last = sequence.blocks[-1] if sequence.blocks else None
        if sequence.trunk is not None:
            if wanted > 0:
                sequence.blocks += self._set_aside(sequence.trunk, wanted, after=last)
            return True
        while wanted > self.blocks.num_available:
            youngest = max(
                (one for one in self._running if one.num_branches == 1), key=lambda one: one.id
            )
            self._preempt(youngest)
            if youngest is sequence:
                return False
        if wanted > 0:
            sequence.blocks += self.blocks.allocate(wanted, after=last)
        return True

    def _admit(self, budget: int) -> Iterator[Work]:
        """Waiting sequences in order, while tokens, places and blocks are left."""
        in_progress = {
            digest
            for sequence in self._running
            for digest in self._digests(sequence)[self._num_full(sequence) :]
        }
        for sequence in tuple(self._waiting):
            if not budget or self._num_places + sequence.num_branches > self.max_running:
                return
            digests = self._digests(sequence)
            # At least one token must be computed, or there is nothing to choose the next one from.
            usable = digests[: sequence.num_reusable // self.blocks.block_tokens]
            found = self.blocks.num_found(usable)
            if found < len(usable) and usable[found] in in_progress:
                continue  # another one is computing what this one could share
            if not self._take_blocks(sequence, usable[:found]):
                return
            in_progress |= set(digests[found:])
            yield _work(sequence, budget)
            budget -= min(budget, sequence.num_pending)

    def _take_blocks(self, sequence: Sequence, shared: Seq[Digest]) -> bool:
        wanted = -(-len(sequence.tokens) // self.blocks.block_tokens) - len(shared)
        num_reserved = max(0, sequence.most_blocks - len(shared) - wanted)
        needed = wanted + num_reserved + self.blocks.num_needed_to_share(shared)
        if needed > self.blocks.num_available:
            return False
        blocks = self.blocks.share(shared)
        blocks += self.blocks.allocate(wanted, after=blocks[-1] if blocks else None)
        self.blocks.reserve(num_reserved)
        sequence.blocks, sequence.num_reserved = blocks, num_reserved
        sequence.num_computed = sequence.num_shared = len(shared) * self.blocks.block_tokens
        self._waiting.remove(sequence)
        self._running.append(sequence)
        self._running.sort(key=lambda one: one.id)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._release(sequence)
        self._enqueue(sequence)
        self.num_preempted += 1

    def _release(self, sequence: Sequence) -> None:
        for one in sequence.texts:
            self.blocks.release(one.blocks)
        self.blocks.unreserve(sequence.num_reserved)
        sequence.blocks, sequence.branches = [], []
        sequence.num_computed = sequence.num_reserved = 0

    def _enqueue(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)
        self._waiting.sort(key=lambda one: one.id)

    def _digests(self, sequence: Sequence) -> list[Digest]:
        """The names of its full blocks."""
        size, known = self.blocks.block_tokens, sequence.digests
        for index in range(len(known), len(sequence.tokens) // size):
            previous = known[-1] if known else sequence.variant
            known.append(chain(previous, sequence.tokens[index * size : (index + 1) * size]))
        return known

    def _num_full(self, sequence: Sequence) -> int:
        return sequence.num_computed // self.blocks.block_tokens


def _work(sequence: Sequence, budget: int) -> Work:
    start = sequence.num_computed
    return Work(sequence, start, start + min(budget, sequence.num_pending))
