"""The typed face of the context that torch hands to an autograd.Function."""

from typing import Protocol

from torch import Tensor


class Context(Protocol):
    """What forward keeps for backward."""

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]:
        """The tensors given to save_for_backward, in order."""
        ...

    @property
    def needs_input_grad(self) -> tuple[bool, ...]:
        """Whether each of forward's arguments takes a gradient."""
        ...

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors for backward."""
        ...
