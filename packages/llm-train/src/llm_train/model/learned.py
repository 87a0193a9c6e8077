"""The learned tokens of a micro-batch: the only ones whose logits a fine-tuning step needs.

T tokens of this rank, B sequences, S = T · ranks tokens of whole sequences, N learned tokens of the
rank that has the most, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Where fewer of all logits than this can be left out, choosing their tokens costs as much.
_LEAST_SAVED = 1 / 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedTokens:
    """Where learned tokens lie; ranks with fewer than N name some others for the rest.

    `rows` [ranks, N]: in each rank's own hidden states [T · B]. `places` [ranks · N]: in whole
    sequences [B · S], B · S for what only fills up.
    """

    rows: torch.Tensor
    places: torch.Tensor

    @classmethod
    def of(cls, mask: torch.Tensor, *, ranks: int) -> LearnedTokens | None:
        """Those of a loss mask [B, S] on the host; None where all logits may as well be computed.

        `ranks` have a slice of S each, as under sequence parallel. All know the same N ≥ 1, also
        where nothing is learned: they exchange as many rows, and weights get a gradient.
        """
        batch, tokens = mask.shape
        # [ranks, T · B]: in the order of each rank's hidden states.
        is_learned = (mask != 0).view(batch, ranks, -1).permute(1, 2, 0).flatten(1)
        count = max(1, int(is_learned.sum(1).max()))
        if count * ranks > mask.numel() * (1 - _LEAST_SAVED):
            return None
        # A stable sort by "not learned" puts the learned ones first, in their order.
        rows = is_learned.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
        first = torch.arange(ranks)[:, None] * (tokens // ranks)
        places = rows % batch * tokens + first + rows // batch
        places = torch.where(is_learned.gather(1, rows), places, mask.numel())
        return cls(rows=rows, places=places.flatten())

    def to(self, device: torch.device) -> LearnedTokens:
        """The same on a device."""
        rows, places = (x.to(device, non_blocking=True) for x in (self.rows, self.places))
        return LearnedTokens(rows=rows, places=places)

    def hidden(self, hidden: torch.Tensor, *, rank: int) -> torch.Tensor:
        """[T, B, H] of a rank → [N, 1, H]."""
        return hidden.flatten(0, 1).index_select(0, self.rows[rank])[:, None]

    def labels(self, labels: torch.Tensor) -> torch.Tensor:
        """[B, S] → [1, ranks · N]."""
        return labels.flatten()[self.places.clamp(max=labels.numel() - 1)][None]

    def spread(self, losses: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Losses [1, ranks · N] → [B, S], 0 at tokens that are not learned."""
        # One place more, for what only fills up.
        out = losses.new_zeros(shape.numel() + 1)
        return out.index_copy(0, self.places, losses.flatten())[:-1].view(shape)
