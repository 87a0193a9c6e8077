"""The interface of a rule, the rule that changes nothing, and rules that change the shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from llm_ckpt.arch import Arch
from llm_ckpt.layout import Cut, Shape


class Rule(Protocol):
    """What table, plan and execute know of a rule."""

    @property
    def mcore(self) -> str:
        """Canonical megatron-core name pattern."""
        ...

    @property
    def parts(self) -> tuple[str, ...]:
        """Hugging Face name patterns, in the order of `merge`'s tensors."""
        ...

    def part_shapes(self, shape: Shape, arch: Arch) -> tuple[Shape, ...]:
        """Shapes of the parts when the merged tensor has `shape`."""
        ...

    def part_cuts(self, cut: Cut, arch: Arch) -> tuple[Cut, ...]:
        """How each part is cut when the merged tensor is cut by `cut`."""
        ...

    def commutes(self, size: int, arch: Arch) -> bool:
        """Whether the law above holds for `size` ranks; if not, merge first and cut then."""
        ...

    def merge(self, parts: Sequence[Tensor], arch: Arch) -> Tensor:
        """One megatron-core tensor (or one rank's piece of it) from the parts (pieces)."""
        ...

    def split(self, tensor: Tensor, arch: Arch) -> tuple[Tensor, ...]:
        """The inverse of `merge`."""
        ...


@dataclass(frozen=True, slots=True)
class Same:
    """One tensor, the same on both sides."""

    mcore: str
    hf: str

    @property
    def parts(self) -> tuple[str, ...]:
        """The one name."""
        return (self.hf,)

    def part_shapes(self, shape: Shape, arch: Arch) -> tuple[Shape, ...]:
        """The same shape."""
        del arch
        return (shape,)

    def part_cuts(self, cut: Cut, arch: Arch) -> tuple[Cut, ...]:
        """The same cut."""
        del arch
        return (cut,)

    def commutes(self, size: int, arch: Arch) -> bool:
        """Always."""
        del size, arch
        return True

    def merge(self, parts: Sequence[Tensor], arch: Arch) -> Tensor:
        """The tensor itself."""
        del arch
        return parts[0]

    def split(self, tensor: Tensor, arch: Arch) -> tuple[Tensor, ...]:
        """The tensor itself."""
        del arch
        return (tensor,)


@dataclass(frozen=True, slots=True)
class Row:
    """A vector that every rank holds whole ⇄ a matrix of one row."""

    mcore: str
    hf: str

    @property
    def parts(self) -> tuple[str, ...]:
        """The one name."""
        return (self.hf,)

    def part_shapes(self, shape: Shape, arch: Arch) -> tuple[Shape, ...]:
        """One row."""
        del arch
        return ((1, *shape),)

    def part_cuts(self, cut: Cut, arch: Arch) -> tuple[Cut, ...]:
        """The same cut: none."""
        del arch
        return (cut,)

    def commutes(self, size: int, arch: Arch) -> bool:
        """Always."""
        del size, arch
        return True

    def merge(self, parts: Sequence[Tensor], arch: Arch) -> Tensor:
        """The row."""
        del arch
        return parts[0][0]

    def split(self, tensor: Tensor, arch: Arch) -> tuple[Tensor, ...]:
        """A matrix of it."""
        del arch
        return (tensor[None],)


@dataclass(frozen=True, slots=True)
class Transposed:
    """A rule whose Hugging Face tensors are stored [in, out] (GPT-2's Conv1D, stacked experts)."""

    rule: Rule

    @property
    def mcore(self) -> str:
        """The inner rule's."""
        return self.rule.mcore

    @property
    def parts(self) -> tuple[str, ...]:
        """The inner rule's."""
        return self.rule.parts

    def part_shapes(self, shape: Shape, arch: Arch) -> tuple[Shape, ...]:
        """With both axes exchanged."""
        return tuple((b, a) for a, b in self.rule.part_shapes(shape, arch))

    def part_cuts(self, cut: Cut, arch: Arch) -> tuple[Cut, ...]:
        """With both axes exchanged."""
        return tuple(
            part if part.axis is None else Cut(1 - part.axis, part.sections, part.padded)
            for part in self.rule.part_cuts(cut, arch)
        )

    def commutes(self, size: int, arch: Arch) -> bool:
        """A piece of several sections can only be laid end to end on axis 0."""
        cuts = self.rule.part_cuts(Cut(0), arch)
        is_one_run = size == 1 or all(len(cut.sections) == 1 for cut in cuts)
        return is_one_run and self.rule.commutes(size, arch)

    def merge(self, parts: Sequence[Tensor], arch: Arch) -> Tensor:
        """Transpose, then the inner rule."""
        return self.rule.merge([part.T for part in parts], arch).contiguous()

    def split(self, tensor: Tensor, arch: Arch) -> tuple[Tensor, ...]:
        """The inner rule, then transpose."""
        return tuple(part.T.contiguous() for part in self.rule.split(tensor, arch))
