"""The texts of a beam search in the cache: full blocks are shared, the last one is copied."""

from collections.abc import Sequence

from torch import Tensor

from llm_infer.beam import BeamSearch
from llm_infer.blocks import BlockManager, Digest, chain
from llm_infer.errors import InferError
from llm_infer.model.runner import Model, ModelRunner
from llm_infer.model.steps import Part

LONG = b"long"
"""The variant of texts that use the rope table for long ones."""


class BeamTexts:
    """Texts of one length that began as one. `close` gives their blocks back."""

    def __init__(
        self,
        model: Model,
        runner: ModelRunner,
        blocks: BlockManager,
        *,
        step_tokens: int,
    ) -> None:
        """`step_tokens` bounds how much of the prompt is computed at once."""
        self._model, self._runner, self._blocks = model, runner, blocks
        self._step_tokens = step_tokens
        self._held: list[list[int]] = []
        self._num_computed = 0
        self._is_long = False

    def reserve(self, num_prompt: int, *, num_beams: int, max_new_tokens: int) -> None:
        """Raise InferError unless all fits into the cache, and one rope table serves for it."""
        # The last token is chosen, but never computed.
        longest, size = num_prompt + max_new_tokens - 1, self._blocks.block_tokens
        shared = num_prompt // size
        own = -(-longest // size) - shared
        wanted, found = shared + num_beams * own, self._blocks.num_available
        if wanted > found:
            raise InferError(
                f"a beam search over {num_beams} texts of {longest} tokens: shared({shared}) + "
                f"beams({num_beams}) * own({own}) = {wanted} blocks of {size} tokens, and the "
                f"cache has {found} free; use fewer beams or new tokens, or a larger cache"
            )
        short = self._model.short_length
        self._is_long = short is not None and num_prompt > short
        if short is not None and num_prompt <= short < longest:
            raise InferError(
                f"a beam search from {num_prompt} to {longest} tokens: the model has another "
                f"rope table after {short}, and beams cannot change it on their way"
            )

    def start(self, prompt: Sequence[int]) -> Tensor:
        """Logits [1, V] after the prompt; what of it is in the cache is not computed again."""
        size = self._blocks.block_tokens
        digests = _digests(prompt, size, LONG if self._is_long else b"")
        usable = digests[: (len(prompt) - 1) // size]
        found = self._blocks.num_found(usable)
        blocks = self._blocks.share(usable[:found])
        self._held = [blocks]
        self._num_computed = found * size
        logits_RV = None
        while logits_RV is None or self._num_computed < len(prompt):
            stop = min(len(prompt), self._num_computed + self._step_tokens)
            logits_RV = self._compute([prompt[self._num_computed : stop]])
        for index in range(found, len(digests)):
            self._blocks.publish(blocks[index], digests[index])
        return logits_RV

    def go_on(self, parents: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Logits [B, V] after texts that continue earlier ones (`parents`) by a token each."""
        for index, blocks in enumerate(self._held):
            if index not in parents:
                self._blocks.release(blocks)
                blocks.clear()
        # The first child of a text takes its blocks over; room for the others was reserved.
        is_first = [parent not in parents[:index] for index, parent in enumerate(parents)]
        self._held = [
            self._held[parent] if first else self._copied(self._held[parent])
            for parent, first in zip(parents, is_first, strict=True)
        ]
        return self._compute([[token] for token in tokens])

    def close(self) -> None:
        """Give all blocks back."""
        for blocks in self._held:
            self._blocks.release(blocks)
        self._held = []

    def _copied(self, blocks: Sequence[int]) -> list[int]:
        size = self._blocks.block_tokens
        full = self._num_computed // size
        copied = list(blocks[:full])
        self._blocks.hold(copied)
        if full < len(blocks):
            copied += self._blocks.allocate(1, after=copied[-1] if copied else None)
            self._runner.copy(blocks[full], copied[full])
        return copied

    def _compute(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        first, size = self._num_computed, self._blocks.block_tokens
        stop = first + len(tokens[0])
        for blocks in self._held:
            self._grow(blocks, -(-stop // size))
        parts = [
            Part(tokens=new, first=first, blocks=blocks, wants_logits=True, is_long=self._is_long)
            for new, blocks in zip(tokens, self._held, strict=True)
        ]
        self._num_computed = stop
        return self._runner.run(parts)

    def _grow(self, blocks: list[int], count: int) -> None:
        after = blocks[-1] if blocks else None
        blocks += self._blocks.allocate(max(0, count - len(blocks)), after=after)


def searched(prompt: Sequence[int], search: BeamSearch, texts: BeamTexts) -> list[int]:
    """The best answer of a search whose logits come from `texts`."""
    texts.reserve(len(prompt), num_beams=len(search.answers), max_new_tokens=search.max_new_tokens)
    parents = search.push(texts.start(prompt))
    # Until now there is one text, which all beams continue.
    parents = [0] * len(parents)
    while not search.is_done:
        logits_BV = texts.go_on(parents, [answer[-1] for answer in search.answers])
        parents = search.push(logits_BV)
    return search.best


def _digests(tokens: Sequence[int], size: int, variant: bytes) -> list[Digest]:
    found = list[Digest]()
    for index in range(len(tokens) // size):
        previous = found[-1] if found else variant
        found.append(chain(previous, tokens[index * size : (index + 1) * size]))
    return found
