"""A sample dataset as arrays: columns of rows, and where the samples of a packed row end."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm_data.formats.sample_manifest import SampleManifest
from llm_data.formats.token_dataset import TokenDataset


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleDataset:
    """Rows of several columns, without copies.

    Row i is sequence i of every column. `boundaries_of_rows` is the `cu_seqlens` of packed rows,
    None where a row is a sample.
    """

    name: str
    manifest: SampleManifest
    columns: Mapping[str, TokenDataset]
    boundaries_of_rows: TokenDataset | None

    def __len__(self) -> int:
        """The number of rows."""
        return self.manifest.num_rows

    def row(self, number: int) -> dict[str, NDArray[np.integer]]:
        """Views of the columns of row `number`, in the manifest's order."""
        return {name: column.sequence(number) for name, column in self.columns.items()}

    def boundaries(self, number: int) -> NDArray[np.integer]:
        """0, then the end of each sample in row `number`; a packed row is filled after the last.

        Where a row is a sample: of the first column.
        """
        if self.boundaries_of_rows is not None:
            return self.boundaries_of_rows.sequence(number)
        first = next(iter(self.columns.values()))
        return np.array([0, len(first.sequence(number))], dtype=np.int32)
