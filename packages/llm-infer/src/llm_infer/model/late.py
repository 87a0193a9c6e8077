"""A model whose weights are still being put in place: its facts are there, its steps wait."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from llm_infer.arch import Arch
from llm_infer.model.decoder import cache_shapes
from llm_infer.model.rope import context_of, grows_from, short_length
from llm_infer.model.runner import Model, ModelRunner
from llm_infer.model.steps import Part


class LateModel:
    """A `Model` that a thread of its own makes; see `wait`."""

    def __init__(
        self,
        make: Callable[[], Model],
        *,
        arch: Arch,
        device: torch.device,
        dtype: torch.dtype,
        place: str,
    ) -> None:
        """The facts are those of the model that `make` returns."""
        self.arch, self.device, self.dtype = arch, device, dtype
        self.context, self.place = context_of(arch), place
        self.short_length, self.grows_from = short_length(arch), grows_from(arch)
        self.cache_shapes = cache_shapes(arch)
        self._made: Future[Model] = Future()
        threading.Thread(target=self._fill, args=(make,), name="weights", daemon=True).start()

    def wait(self) -> Model:
        """The model, once it is made; raises what its making raised."""
        return self._made.result()

    def runner(self, *, num_blocks: int, block_tokens: int) -> ModelRunner:
        """A cache that is made with the first step."""
        return _LateRunner(
            lambda: self.wait().runner(num_blocks=num_blocks, block_tokens=block_tokens)
        )

    def _fill(self, make: Callable[[], Model]) -> None:
        try:
            self._made.set_result(make())
        except BaseException as error:  # noqa: BLE001  handed to those who wait
            self._made.set_exception(error)


class _LateRunner:
    """A `ModelRunner` made when first used."""

    def __init__(self, make: Callable[[], ModelRunner]) -> None:
        self._make = make
        self._made: ModelRunner | None = None

    def run(self, parts: Sequence[Part], *, rows: Sequence[int] | None = None) -> Tensor:
        """See `ModelRunner`."""
        return self._runner().run(parts, rows=rows)

    def copy(self, source: int, target: int) -> None:
        """See `ModelRunner`."""
        self._runner().copy(source, target)

    def _runner(self) -> ModelRunner:
        if self._made is None:
            self._made = self._make()
        return self._made
