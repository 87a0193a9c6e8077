"""A decoder with the keys and values of its texts: the one thing engines compute through."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from llm_infer.arch import Arch
from llm_infer.model.cache import CacheShape, StateShape
from llm_infer.model.static_step import Recorder, StaticSteps
from llm_infer.model.steps import Part, clear_opened, make_pools, make_step

if TYPE_CHECKING:
    from llm_infer.model.decoder import Decoder


class ModelRunner(Protocol):
    """Computes steps over a cache of blocks of its own."""

    def run(self, parts: Sequence[Part], *, rows: Sequence[int] | None = None) -> Tensor:
        """float32 logits [R, V] after the tokens `rows` of the step, counted over all parts.

        None: after the last token of each part that wants logits.
        """
        ...

    def copy(self, source: int, target: int) -> None:
        """Put what one block holds into another."""
        ...


class Model(Protocol):
    """A model whose weights are read."""

    @property
    def arch(self) -> Arch:
        """The whole model's facts."""
        ...

    @property
    def device(self) -> torch.device:
        """Where logits are."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Number type of weights and cache."""
        ...

    @property
    def context(self) -> int:
        """Positions that a text may have."""
        ...

    @property
    def short_length(self) -> int | None:
        """The longest text of the first rope table; None where there is one table."""
        ...

    @property
    def grows_from(self) -> int | None:
        """The longest prompt that turns as shorter ones do; None where length changes nothing."""
        ...

    @property
    def cache_shapes(self) -> Sequence[CacheShape | StateShape | None]:
        """What each layer keeps of a text, on this device."""
        ...

    @property
    def place(self) -> str:
        """Where it computes, and how weights are kept, as told to users."""
        ...

    def runner(self, *, num_blocks: int, block_tokens: int) -> ModelRunner:
        """A new cache to compute over."""
        ...


class LocalRunner:
    """A `ModelRunner` of this process."""

    def __init__(
        self,
        decoder: "Decoder",
        *,
        num_blocks: int,
        block_tokens: int,
        recorder: Recorder | None = None,
    ) -> None:
        """With a `recorder`, steps of one token a text are replayed."""
        self._decoder, self._block_tokens = decoder, block_tokens
        spare = 0 if recorder is None else 1
        self.pools = make_pools(decoder, num_blocks=num_blocks + spare, block_tokens=block_tokens)
        self._static = None
        if recorder is not None:
            self._static = StaticSteps(decoder, self.pools, block_tokens, num_blocks, recorder)

    def run(self, parts: Sequence[Part], *, rows: Sequence[int] | None = None) -> Tensor:
        """See `ModelRunner`."""
        if self._static is not None and rows is None and all(map(_is_decoding, parts)):
            return self._static.run(parts)
        clear_opened(parts, self.pools, block_tokens=self._block_tokens)
        step = make_step(parts, block_tokens=self._block_tokens, decoder=self._decoder, rows=rows)
        return self._decoder.forward(step, self.pools)

    def copy(self, source: int, target: int) -> None:
        """See `ModelRunner`."""
        for pool in self.pools:
            if pool is not None:
                pool.copy(self._slots(source), self._slots(target))

    def _slots(self, block: int) -> slice:
        return slice(block * self._block_tokens, (block + 1) * self._block_tokens)


def _is_decoding(part: Part) -> bool:
    """Whether this is a text's latest token, after which one is chosen."""
    return len(part.tokens) == 1 and part.wants_logits
