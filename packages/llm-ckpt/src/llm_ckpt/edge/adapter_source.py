"""PEFT folders that a training run begins with: what `llm_train.adapter_sources` names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llm_ckpt.arch import parse_arch
from llm_ckpt.errors import CheckpointError
from llm_ckpt.families import family_named
from llm_ckpt.formats.peft import Adapter, read_adapter, read_slab
from llm_ckpt.formats.slab import Files
from llm_ckpt.rules import Transposed
from llm_ckpt.table import Entry, Table

_SUFFIX = ".weight"

_Part = tuple[Tensor, Tensor, Tensor | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFactors:
    """A [R, in] and B [out, R] of a weight, DoRA's `lengths`, and which of B `learns`.

    Lengths are of its rows [out], of an embedding's columns [in].

    Where the Hugging Face modules of a weight have an A each, R is the sum of their ranks: the
    rows of a module have the columns of its own A alone, and `learns` [out, R] says which those
    are. It is None where all modules share one A. `columns` are how many columns of B there are
    and what B·A is multiplied by there, of all modules together or of each, 0 of one without.
    """

    a: Tensor
    b: Tensor
    lengths: Tensor | None
    learns: Tensor | None
    columns: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAdapter:
    """A PEFT folder under megatron-core's names of the weights that it adapts."""

    adapter: Adapter
    table: Table

    @property
    def rank(self) -> int:
        """Of modules that have none of their own (`rank_pattern`)."""
        return self.adapter.config.r

    @property
    def scaling(self) -> float:
        """What B·A is multiplied by where neither rank nor alpha is a module's own."""
        return self.adapter.config.default_scaling

    @property
    def is_dora(self) -> bool:
        """It has the lengths of rows too."""
        return self.adapter.config.use_dora

    def names(self) -> Sequence[str]:
        """The adapted weights."""
        adapted = self.adapter.low_rank
        return [
            name
            for name, entry in self.table.entries.items()
            if any(part.key in adapted for part in entry.parts)
        ]

    def saved_names(self) -> Sequence[str]:
        """The weights that it has whole because they trained (`modules_to_save`)."""
        return self._replaced(is_trained=True)

    def copied_names(self) -> Sequence[str]:
        """Those that it has whole as the base has them: PEFT keeps tables beside their adapters."""
        return self._replaced(is_trained=False)

    def read_whole(self, name: str) -> Tensor:
        """What it has for one of either."""
        entry, files = self.table.entries[name], Files()
        parts = [read_slab(files, self.adapter.replaced[part.key]) for part in entry.parts]
        files.close()
        return entry.rule.merge(parts, self.table.arch)

    def _replaced(self, *, is_trained: bool) -> Sequence[str]:
        replaced = {
            key for key in self.adapter.replaced if self.adapter.is_trained(key) == is_trained
        }
        return [
            name
            for name, entry in self.table.entries.items()
            if any(part.key in replaced for part in entry.parts)
        ]

    def read(self, name: str) -> StoredFactors:
        """What the folder has for one of them."""
        entry, files = self.table.entries[name], Files()
        found = [self.adapter.low_rank.get(part.key) for part in entry.parts]
        parts = [None if one is None else one.read(files) for one in found]
        files.close()
        given = [one for one in parts if one is not None]
        is_whole = len(given) == len(parts)
        if self.is_dora and not is_whole:
            raise CheckpointError(
                f"{self.adapter.folder}: DoRA of {len(given)} of the {len(parts)} modules that "
                f"{name} is made of; want all of them, or none"
            )
        rule, arch = entry.rule, self.table.arch
        # Rows of B are those of an [out, in] tensor, whichever way it lies.
        merge = (rule.rule if isinstance(rule, Transposed) else rule).merge
        vectors = [one[2][:, None] for one in given if one[2] is not None]
        is_embedding = any(one is not None and one.is_embedding for one in found)
        lengths = None
        if vectors:
            lengths = (vectors[0] if is_embedding else merge(vectors, arch))[:, 0]
        columns = tuple(
            (0, self.scaling) if one is None else (one.rank, self.adapter.scaling(part.key))
            for one, part in zip(found, entry.parts, strict=True)
        )
        is_one = is_whole and len(set(columns)) == 1
        if is_one and all(torch.equal(one[0], given[0][0]) for one in given):
            b = merge([one[1] for one in given], arch)
            return StoredFactors(
                a=given[0][0], b=b, lengths=lengths, learns=None, columns=columns[:1]
            )
        a, rows, learns = _blocks(entry, parts)
        return StoredFactors(
            a=a,
            b=merge(rows, arch),
            lengths=lengths,
            learns=merge(learns, arch),
            columns=columns,
        )


def open_adapter(folder: Path, *, arch: Mapping[str, object]) -> StoredAdapter:
    """A PEFT folder for the model of an arch.json document.

    Raises CheckpointError where it adapts or has whole what the model does not have.
    """
    model = parse_arch(dict(arch), where="arch.json")
    table = family_named(model.family, where="arch.json").table(model)
    adapter = read_adapter(folder).on(table.hf_parts())
    if adapter.config.fan_in_fan_out:
        raise CheckpointError(f"{folder}: fan_in_fan_out: linears that lie transposed do not train")
    _check_replaced(adapter, table)
    rules = {part.key: entry.rule for entry in table.entries.values() for part in entry.parts}
    for name in sorted(adapter.low_rank):
        if name not in rules:
            raise CheckpointError(f"{folder}: {name} is not in the model ({model.family})")
        if isinstance(rules[name], Transposed) and adapter.low_rank[name].which is None:
            raise CheckpointError(f"{folder}: {name} lies transposed, which is not built")
    return StoredAdapter(adapter=adapter, table=table)


def _check_replaced(adapter: Adapter, table: Table) -> None:
    """Every weight that is there whole has a place, its shape, and all that makes a parameter."""
    left = dict(adapter.replaced)
    for name, entry in table.entries.items():
        given = [part for part in entry.parts if part.key in adapter.replaced]
        for part in given:
            found = left.pop(part.key).shape
            if found != part.stored_shape:
                raise CheckpointError(
                    f"{adapter.folder}: {part.key} is {list(found)}, in the model "
                    f"{list(part.stored_shape)}; want a base of that size"
                )
        if given and len(given) < len(entry.parts):
            wanted = ", ".join(part.key for part in entry.parts)
            raise CheckpointError(
                f"{adapter.folder}: has {given[0].key} whole, of {name}, which is {wanted}; want "
                "all of them, or none"
            )
    if left:
        family = table.arch.family
        raise CheckpointError(f"{adapter.folder}: {min(left)} is not in the model ({family})")


def _blocks(
    entry: Entry, parts: Sequence[_Part | None]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """One A of all modules, and for each its rows of B and of `learns`; zeros for one without."""
    a = torch.cat([one[0] for one in parts if one is not None])
    rows: list[Tensor] = []
    learns: list[Tensor] = []
    start = 0
    for part, one in zip(entry.parts, parts, strict=True):
        wide = a.new_zeros(part.shape[0], len(a))
        mine = torch.zeros_like(wide, dtype=torch.bool)
        if one is not None:
            block = slice(start, start := start + len(one[0]))
            wide[:, block], mine[:, block] = one[1], True
        rows.append(wide)
        learns.append(mine)
    return a, rows, learns
