"""GPTDataset whose samples know where their documents start, from the dataset's own index."""

from typing import cast

import numpy as np
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset
from megatron.core.datasets.indexed_dataset import IndexedDataset


class DocumentRows(GPTDataset):
    """The samples of GPTDataset in the same order, each document in them on its own.

    Positions count from the start of each document in the row, and a token whose label is another
    document's is not trained on. A document is what GPTDataset draws: a sequence of the index.
    """

    def __getitem__(self, idx: int | None) -> dict[str, torch.Tensor]:
        """Tokens, labels, position_ids [T] int64 and loss_mask [T] fp32."""
        sample = super().__getitem__(idx)
        documents = self._document_of_each(0 if idx is None else idx)
        sample["position_ids"] = _positions(documents[:-1])
        sample["loss_mask"] = sample["loss_mask"] * (documents[:-1] == documents[1:])
        return sample

    def _document_of_each(self, idx: int) -> torch.Tensor:
        """[T + 1]: which document of the row every token and the last label belong to."""
        place = self.shuffle_index[idx]
        (first, offset), (last, end) = self.sample_index[place], self.sample_index[place + 1]
        index = cast("IndexedDataset", self.dataset)
        lengths = index.sequence_lengths[self.document_index[first : last + 1]].astype(int)
        lengths[-1] = end + 1
        lengths[0] -= offset
        # Filling, where the data ends before the row does, is a document too.
        total = self.config.sequence_length + 1
        filled = np.append(lengths, total - lengths.sum())
        return torch.from_numpy(np.repeat(np.arange(len(filled)), filled))


def _positions(documents: torch.Tensor) -> torch.Tensor:
    """[T]: tokens since the document's first in the row."""
    places = torch.arange(len(documents))
    is_first = torch.ones_like(documents, dtype=torch.bool)
    is_first[1:] = documents[1:] != documents[:-1]
    return places - torch.where(is_first, places, 0).cummax(0).values
