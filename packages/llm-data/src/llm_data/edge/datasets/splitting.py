"""One dataset cut into several: every document in exactly one of them."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llm_data.blending import CHUNK, Draws, Numbers, Shuffle
from llm_data.edge.console.progress import Progress, Silent
from llm_data.edge.datasets.dataset_files import DatasetFiles, open_files, output_layout
from llm_data.edge.datasets.dataset_sums import derived_draft, derived_source
from llm_data.edge.datasets.derived_dataset import Derivation, Derived, derive, find_finished
from llm_data.edge.datasets.document_reader import PairReader
from llm_data.edge.durable import with_suffix
from llm_data.errors import DataError, UsageError

Unit = Literal["documents", "tokens"]

_USUAL_NAMES = {2: ("train", "valid"), 3: ("train", "valid", "test")}
_MOST_PARTS = 32766


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part's name, and its share of the whole in proportion to the other parts'."""

    name: str
    ratio: float


def equal_parts(count: int) -> tuple[Part, ...]:
    """`count` parts alike, numbered from 0."""
    width = len(str(count - 1))
    return tuple(Part(name=f"part{number:0{width}}", ratio=1.0) for number in range(count))


def named_parts(ratios: Sequence[float], names: Sequence[str] | None = None) -> tuple[Part, ...]:
    """Parts of those shares; two or three need no names: train, valid, test."""
    names = names or _USUAL_NAMES.get(len(ratios), ())
    if len(names) != len(ratios):
        raise UsageError(f"{len(names)} names for {len(ratios)} ratios, want one each")
    return tuple(Part(name=name, ratio=ratio) for name, ratio in zip(names, ratios, strict=True))


def split(
    prefix: Path,
    *,
    output: Path,
    parts: Sequence[Part],
    by: Unit = "documents",
    shuffle_seed: int | None = None,
    without_manifest: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Derived]:
    """Write the parts as `<output>_<name>`, each with its documents in the order of the whole.

    A part is a stretch of the dataset, or with `shuffle_seed` a random choice that is the same on
    every machine. `by` tells in what the ratios count. Raises DataError if a part would be empty.
    """
    _check_parts(parts)
    files = open_files(prefix, bare=without_manifest)
    edges = _edges(files, parts, by=by, shuffle_seed=shuffle_seed)
    how = {
        "parts": [[part.name, part.ratio] for part in parts],
        "by": by,
        "shuffle_seed": shuffle_seed,
    }
    plans = [
        _plan(files, output, parts, edges, number, how=json.dumps(how))
        for number in range(len(parts))
    ]
    # Before the first is written: a set of parts of different splits would lose documents.
    done = [None if overwrite else find_finished(plan) for plan in plans]
    if all(done):
        return [one for one in done if one is not None]
    output.parent.mkdir(parents=True, exist_ok=True)
    shuffle = None if shuffle_seed is None else Shuffle(files.num_documents, seed=shuffle_seed)
    with tempfile.TemporaryFile(dir=output.parent) as scratch:
        table = None if shuffle is None else _assigned(shuffle, edges, scratch.fileno())
        return [
            one
            or derive(
                replace(plan, order=_documents(edges, number, table)),
                overwrite=overwrite,
                progress=progress or Silent(),
            )
            for number, (plan, one) in enumerate(zip(plans, done, strict=True))
        ]


def _check_parts(parts: Sequence[Part]) -> None:
    if not 1 <= len(parts) <= _MOST_PARTS:
        raise UsageError(f"{len(parts)} parts, want 1 to {_MOST_PARTS}")
    if bad := [part for part in parts if not 0 < part.ratio < float("inf")]:
        raise UsageError(f"{bad[0].name}: ratio {bad[0].ratio}, want a number above 0")
    names = [part.name for part in parts]
    if len(set(names)) != len(names) or any(not name or "/" in name for name in names):
        raise UsageError(f"names {', '.join(names)}: want distinct ones without '/'")


def _edges(
    files: DatasetFiles, parts: Sequence[Part], *, by: Unit, shuffle_seed: int | None
) -> Numbers:
    """First place of each part in the order of places, then the number of documents."""
    ratios = np.array([part.ratio for part in parts])
    shares = np.cumsum(ratios) / ratios.sum()
    count = files.num_documents
    if by == "documents":
        inner = np.rint(shares[:-1] * count).astype(np.int64)
    else:
        inner = _token_edges(files, shares[:-1], shuffle_seed=shuffle_seed)
    edges = np.concatenate(([0], inner, [count]))
    for part, size in zip(parts, np.diff(edges).tolist(), strict=True):
        if size < 1:
            raise DataError(
                f"{files.name}: part {part.name!r} would be empty: its share of {count} documents "
                "is less than one"
            )
    return edges


def _token_edges(
    files: DatasetFiles, shares: NDArray[np.float64], *, shuffle_seed: int | None
) -> Numbers:
    """The places whose tokens before them are nearest to each share of all tokens."""
    counted = [
        number
        for number, column in enumerate(files.columns)
        if column == "" or column.endswith("input_ids")
    ]
    readers = [PairReader(files.layout.pairs[number].stem) for number in counted]
    total = sum(len(reader.tokens) // reader.index.dtype.itemsize for reader in readers)
    shuffle = None if shuffle_seed is None else Shuffle(files.num_documents, seed=shuffle_seed)
    wanted = (shares * total).tolist()
    edges: list[int] = []
    before = 0
    for first in range(0, files.num_documents, CHUNK):
        places = np.arange(first, min(files.num_documents, first + CHUNK), dtype=np.int64)
        documents = places if shuffle is None else shuffle.documents(places)
        ends = before + np.cumsum(sum(_tokens_of(reader, documents) for reader in readers))
        while len(edges) < len(wanted) and ends[-1] >= wanted[len(edges)]:
            target = wanted[len(edges)]
            at = int(np.searchsorted(ends, target))
            lower = int(ends[at - 1]) if at else before
            is_nearer_below = target - lower < int(ends[at]) - target
            edges.append(first + at + (0 if is_nearer_below else 1))
        before = int(ends[-1])
    return np.array(edges, dtype=np.int64)


def _tokens_of(reader: PairReader, documents: Numbers) -> Numbers:
    spans = reader.spans(documents)
    reader.release()
    return (spans.ends - spans.starts) // reader.index.dtype.itemsize


def _assigned(shuffle: Shuffle, edges: Numbers, scratch: int) -> NDArray[np.int16]:
    """The part of each document, in a file: two bytes a document would not be flat in memory."""
    count = int(edges[-1])
    with open(scratch, "r+b", closefd=False) as stream:
        table = np.memmap(stream, dtype=np.int16, mode="w+", shape=(count,))
    for first in range(0, count, CHUNK):
        documents = np.arange(first, min(count, first + CHUNK), dtype=np.int64)
        places = shuffle.places(documents)
        table[first : first + CHUNK] = np.searchsorted(edges, places, side="right") - 1
    return table


def _documents(edges: Numbers, number: int, table: NDArray[np.int16] | None) -> Iterator[Draws]:
    """The documents of a part, in the order of the whole."""
    start, end = (0, int(edges[-1])) if table is not None else map(int, edges[number : number + 2])
    for first in range(start, end, CHUNK):
        documents = np.arange(first, min(end, first + CHUNK), dtype=np.int64)
        if table is not None:
            documents = documents[table[first : first + len(documents)] == number]
        if len(documents):
            yield Draws(np.zeros(len(documents), dtype=np.int16), documents)


def _plan(
    files: DatasetFiles,
    output: Path,
    parts: Sequence[Part],
    edges: Numbers,
    number: int,
    *,
    how: str,
) -> Derivation:
    name = parts[number].name
    draft = None
    if files.manifest is not None:
        source = derived_source(files, how=f"part {name!r} of {how}")
        draft = derived_draft(files.manifest, sources=(source,))
    return Derivation(
        inputs=[files],
        order=(),
        num_documents=int(edges[number + 1] - edges[number]),
        output=output_layout(with_suffix(output, f"_{name}"), files),
        draft=draft,
    )
