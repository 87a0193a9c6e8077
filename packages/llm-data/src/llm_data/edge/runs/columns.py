"""The columns of a run: spools that grow together, in one folder."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing

from llm_data.edge.datasets.spool import Spool, SpoolMark
from llm_data.edge.runs.run_folder import RunFolder
from llm_data.encode import Column, EncodedColumn
from llm_data.errors import DataError
from llm_data.formats.manifest_parts import FileEntry


class Columns:
    """Spools by name, as they were at `marks`; what was written after that is cut off."""

    def __init__(
        self, folder: RunFolder, columns: Sequence[Column], *, marks: Mapping[str, SpoolMark]
    ) -> None:
        counts = {marks[name].num_documents for name in marks}
        if len(counts) > 1:
            raise DataError(f"{folder.path}: columns of {sorted(counts)} documents in one state")
        self._spools: dict[str, Spool] = {}
        with ExitStack() as opened:
            for column in columns:
                spool = Spool(
                    folder.column(column.name),
                    dtype=column.dtype,
                    mark=marks.get(column.name, SpoolMark()),
                )
                self._spools[column.name] = opened.enter_context(closing(spool))
            self._opened = opened.pop_all()

    def append(self, columns: Sequence[EncodedColumn], *, sizes: bytes) -> None:
        """Documents of every column, in the columns' order; int32 sequences a document."""
        for spool, column in zip(self._spools.values(), columns, strict=True):
            spool.append(column.tokens, lengths=column.lengths, sizes=sizes)

    def mark(self) -> dict[str, SpoolMark]:
        """What is whole and on the disk now."""
        return {name: spool.mark() for name, spool in self._spools.items()}

    def write_indexes(self) -> dict[str, dict[str, FileEntry]]:
        """Write every index and close; the entries of both files of each column."""
        return {name: spool.write_index() for name, spool in self._spools.items()}

    def close(self) -> None:
        """Close the files; safe to call twice."""
        self._opened.close()
