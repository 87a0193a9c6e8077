"""A dataset made of the documents of others: written column by column, published at once.

What it writes stands in `<stem>.parts` until it is whole. After a kill the same command begins
again there; once the manifest is in the folder, only renames are left.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_data.blending import CHUNK, Draws
from llm_data.edge.console.progress import Progress
from llm_data.edge.datasets.dataset_files import DatasetFiles
from llm_data.edge.datasets.dataset_manifests import DatasetManifest, packed
from llm_data.edge.datasets.dataset_sums import ColumnSum, completed, is_of, read_again, sum_of
from llm_data.edge.datasets.document_reader import ColumnReader
from llm_data.edge.datasets.spool import INDEX_FILE, TOKENS_FILE, Spool, SpoolMark
from llm_data.edge.durable import sync_folder, writing_to
from llm_data.edge.runs.run_folder import Layout, RunFolder
from llm_data.errors import DataError, FormatError, UsageError
from llm_data.formats.manifest_parts import FileEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """A dataset that was written, or with `already_done` had been; bare pairs have no manifest."""

    layout: Layout
    manifest: DatasetManifest | None
    num_documents: int
    num_tokens: int
    already_done: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """What to write: from which datasets, which agree with each other, in which order, and where.

    `draft` is the manifest with every count 0 and without files, None for bare pairs. `order` is
    walked once. With `is_checked` every dataset is taken whole, one after the other, and its
    checksums are compared on the way.
    """

    inputs: Sequence[DatasetFiles]
    order: Iterable[Draws]
    num_documents: int
    output: Layout
    draft: DatasetManifest | None
    is_checked: bool = False


def derive(plan: Derivation, *, overwrite: bool, progress: Progress) -> Derived:
    """Write the dataset, unless it is there already; what another run left is kept or replaced."""
    _check_places(plan)
    folder = RunFolder(plan.output)
    if not overwrite and (done := find_finished(plan)) is not None:
        return done
    plan.output.stem.parent.mkdir(parents=True, exist_ok=True)
    with folder.locked():
        if not _is_sealed(plan, folder):
            _clear(folder, overwrite=overwrite)
            try:
                with writing_to(folder.path, afterwards="nothing is left of it"):
                    sums = _write(plan, folder, progress)
            except BaseException:
                folder.remove()
                raise
            if plan.draft is None:
                return _publish_pair(plan, folder, sums)
        _remove_old(plan.output, folder)
        folder.publish()
    manifest = read_again(plan.output.manifest)
    return Derived(
        layout=plan.output,
        manifest=manifest,
        num_documents=plan.num_documents,
        num_tokens=manifest.num_tokens,
        already_done=False,
    )


def find_finished(plan: Derivation) -> Derived | None:
    """This very dataset if it is there, else None. Raises DataError if another one is.

    One whose publishing was cut short is not there yet.
    """
    output = plan.output
    if _is_sealed(plan, RunFolder(output)):
        return None
    found = [path for path in (output.manifest, *output.files.values()) if path.exists()]
    if not found:
        return None
    manifest = read_again(output.manifest) if output.manifest.exists() else None
    if manifest is None or plan.draft is None or not is_of(manifest, plan.draft):
        raise DataError(
            f"{found[0]}: there already, and not from these inputs and options; --overwrite "
            "replaces it, or choose another --output"
        )
    for name, path in output.files.items():
        size = path.stat().st_size if path.exists() else None
        if size != manifest.files[name].bytes:
            what = "missing" if size is None else f"{size} bytes"
            raise DataError(
                f"{path}: {what}, want {manifest.files[name].bytes}; --overwrite makes it again"
            )
    return Derived(
        layout=output,
        manifest=manifest,
        num_documents=plan.num_documents,
        num_tokens=manifest.num_tokens,
        already_done=True,
    )


def _check_places(plan: Derivation) -> None:
    outputs = {path.absolute() for path in plan.output.files.values()}
    for files in plan.inputs:
        if outputs & {path.absolute() for path in files.layout.files.values()}:
            raise UsageError(f"{files.name}: the output would replace it; choose another --output")


def _is_sealed(plan: Derivation, folder: RunFolder) -> bool:
    """A run of these inputs was killed while it published."""
    sealed = folder.path / "manifest.json"
    return plan.draft is not None and sealed.exists() and is_of(read_again(sealed), plan.draft)


def _clear(folder: RunFolder, *, overwrite: bool) -> None:
    if (folder.path / "progress.json").exists() and not overwrite:
        raise DataError(
            f"{folder.path}: holds an unfinished preprocessing run; finish it, delete it, or "
            "--overwrite"
        )
    folder.clear()


def _write(plan: Derivation, folder: RunFolder, progress: Progress) -> dict[str, ColumnSum]:
    """Write every column and, with a draft, the manifest; what was counted, by column."""
    writers = [_ColumnWriter(plan, folder, number) for number in range(len(plan.output.pairs))]
    done = 0
    with ExitStack() as opened:
        for writer in writers:
            opened.enter_context(closing(writer))
        for draws in plan.order:
            for writer in writers:
                writer.append(draws)
            done += len(draws.documents)
            note = f"{done:,} documents, {writers[0].sum.tokens:,} tokens"
            progress.update(done=done, total=plan.num_documents, note=note)
        files: dict[str, FileEntry] = {}
        for pair, writer in zip(plan.output.pairs, writers, strict=True):
            files |= {f"{pair.entry}{end}": entry for end, entry in writer.finish().items()}
    if done != plan.num_documents:
        raise AssertionError(f"wrote {done} documents of {plan.num_documents}")
    sums = {writer.name: writer.sum for writer in writers}
    if plan.draft is not None:
        folder.seal(packed(completed(plan.draft, sums, files)))
    return sums


def _publish_pair(plan: Derivation, folder: RunFolder, sums: dict[str, ColumnSum]) -> Derived:
    """Move a bare pair to its name, the index last: without it there is no dataset."""
    _remove_old(plan.output, folder)
    (pair,) = plan.output.pairs
    spool = folder.column(pair.spool)
    (spool / TOKENS_FILE).replace(plan.output.files["bin"])
    sync_folder(pair.stem.parent)
    (spool / INDEX_FILE).replace(plan.output.files["idx"])
    sync_folder(pair.stem.parent)
    folder.remove()
    return Derived(
        layout=plan.output,
        manifest=None,
        num_documents=plan.num_documents,
        num_tokens=next(iter(sums.values())).tokens,
        already_done=False,
    )


def _remove_old(output: Layout, folder: RunFolder) -> None:
    """What is replaced goes first, its manifest before all, so that no mixture is ever whole.

    An index that a killed run published stays: its spool is gone.
    """
    for path in (output.manifest, output.rejects):
        path.unlink(missing_ok=True)
    for spool, final in folder.published.items():
        if final.suffix == ".idx" and spool.exists():
            final.unlink(missing_ok=True)


class _ColumnWriter:
    """One column of the output, read from the same column of every input."""

    def __init__(self, plan: Derivation, folder: RunFolder, number: int) -> None:
        pair = plan.output.pairs[number]
        header = plan.inputs[0].headers[number]
        self._inputs = plan.inputs
        self._number = number
        # Bare pairs have nothing to be compared with.
        self._is_checked = plan.is_checked and plan.draft is not None
        self._current: int | None = None
        self._hash = hashlib.sha256()
        self._reader = ColumnReader([files.layout.pairs[number].stem for files in plan.inputs])
        self._spool = Spool(folder.column(pair.spool), dtype=header.dtype, mark=SpoolMark())
        self.name = pair.entry.removesuffix(".")
        self.sum = sum_of(self.name, header.dtype)

    def append(self, draws: Draws) -> None:
        """Copy the documents drawn."""
        if self._is_checked:
            self._begin(int(draws.datasets[0]))
        found = self._reader.gather(draws)
        # A spool counts by what it is given: the tables once, the tokens in blocks.
        self._spool.append(b"", lengths=found.lengths.tobytes(), sizes=found.sizes.tobytes())
        for block in found.blocks:
            self._spool.append(block, lengths=b"", sizes=b"")  # pyright: ignore[reportArgumentType]  # any buffer
            self.sum.add(block)
            if self._is_checked:
                self._hash.update(block)
        self.sum.rows += len(found.sizes)
        self.sum.sequences += len(found.lengths)

    def finish(self) -> dict[str, FileEntry]:
        """Write the index; the entries of both files."""
        self._end()
        return self._spool.write_index()

    def close(self) -> None:
        """Close the files; safe to call twice."""
        self._spool.close()

    def _begin(self, dataset: int) -> None:
        if dataset != self._current:
            self._end()
            self._current, self._hash = dataset, hashlib.sha256()

    def _end(self) -> None:
        """The checksum of the input that was just read whole is the one its manifest has."""
        if self._current is None:
            return
        files = self._inputs[self._current]
        pair = files.layout.pairs[self._number]
        if files.manifest is None or not files.num_documents:
            return
        wanted, found = files.manifest.files[f"{pair.entry}bin"].sha256, self._hash.hexdigest()
        if found != wanted:
            path: Path = files.layout.files[f"{pair.entry}bin"]
            raise FormatError(f"{path}: sha256 {found}, its manifest wants {wanted}")


def whole(number: int, size: int) -> Iterator[Draws]:
    """Every document of dataset `number`, in order."""
    for first in range(0, size, CHUNK):
        documents = np.arange(first, min(size, first + CHUNK), dtype=np.int64)
        yield Draws(np.full(len(documents), number, dtype=np.int64), documents)
