"""The lightning indexer of DeepSeek sparse attention: which keys a query attends to.

Paper: https://github.com/deepseek-ai/DeepSeek-V3.2-Exp, DeepSeek_V3_2.pdf, section 1.

A key's score is Σ over heads of weight / √heads · relu(q · k / √head_dim), and a query attends to
the `top_k` keys with the highest scores among those that it sees. The indexer's inputs are cut off
from the model's gradients; it learns from a loss of its own (indexer_loss.py), or not at all.

B batch, T queries of this rank, S tokens of a sequence, H heads of the indexer, D their head dim.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from llm_train.arch import Mla
from llm_train.model.linears import ReplicatedLinear
from llm_train.model.norms import norm_parameter
from llm_train.model.packed_rows import PackedRows
from llm_train.model.rope import rotate

# Rows of scores over the sequence, of all heads and the batch together, that lie in memory at once.
ROWS_AT_ONCE = 8192
_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a query sees before anything is chosen: the tokens of its document, up to its own.

    `starts` [B, S] is where the document of each token starts, None where a row is one document.
    """

    tokens: int
    starts: torch.Tensor | None

    def of(self, places: torch.Tensor) -> torch.Tensor:
        """[B or 1, R, S] true where the queries at `places` [R] of the sequence see a key."""
        keys = torch.arange(self.tokens, device=places.device)
        seen = (keys <= places[:, None])[None]
        if self.starts is None:
            return seen
        return seen & (keys >= self.starts[:, places, None])


def sight(tokens: int, packed: PackedRows | None, device: torch.device) -> Sight:
    """Of rows of `tokens`, which hold the documents of `packed`."""
    starts = None if packed is None else packed.first_places().to(device)
    return Sight(tokens=tokens, starts=starts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What scores come from: q [T, B, H, D] and weights [T, B, H] of queries, k [S, B, D] of keys.

    `first` is the place of the first query in the sequence.
    """

    q: torch.Tensor
    k: torch.Tensor
    weights: torch.Tensor
    first: int

    def scores(self, rows: slice) -> torch.Tensor:
        """[B, R, S] in fp32 of these queries; -inf behind the last of them, which none sees."""
        end = self.first + rows.stop
        dots_BHRS = torch.einsum("rbhd,sbd->bhrs", self.q[rows].float(), self.k[:end].float())
        scores = torch.einsum("bhrs,rbh->brs", dots_BHRS.relu(), self.weights[rows])
        return F.pad(scores, (0, len(self.k) - end), value=-torch.inf)

    def places(self, rows: slice) -> torch.Tensor:
        """[R]: where in the sequence these queries are."""
        return torch.arange(self.first + rows.start, self.first + rows.stop, device=self.q.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The keys `allowed` [B, S, S] of the whole sequence, None where all that is seen is.

    `asked` is None where nothing had to be.
    """

    asked: Asked | None
    seen: Sight
    allowed: torch.Tensor | None


class Indexer(MegatronModule):
    """The indexer's weights, under megatron-core's names; every tensor-parallel rank holds them.

    Under sequence parallel a rank asks for the queries it has a slice of, about all keys.
    """

    def __init__(self, config: TransformerConfig, mla: Mla, *, has_rope: bool) -> None:
        super().__init__(config=config)
        assert mla.indexer is not None
        self.facts, self.has_rope = mla.indexer, has_rope
        heads, dim, hidden = self.facts.heads, self.facts.head_dim, config.hidden_size
        self.linear_wq_b = ReplicatedLinear(config, mla.q_lora_rank or hidden, heads * dim)
        self.linear_wk = ReplicatedLinear(config, hidden, dim)
        self.k_norm = _KeyNorm(config, dim)
        self.linear_weights_proj = ReplicatedLinear(config, hidden, heads)
        self.loss_coefficient = config.dsa_indexer_loss_coeff or 0.0
        # The sum over micro-batches of the mean loss of a token; taken once a step.
        self.loss: torch.Tensor | None = None
        # A weight without a gradient must not decay, and an overlapped reduction would wait for it.
        self.requires_grad_(self.loss_coefficient > 0.0)

    @property
    def is_learning(self) -> bool:
        """Its loss is part of this forward; one whose activations are dropped comes again."""
        return self.loss_coefficient > 0.0 and self.training and torch.is_grad_enabled()

    def forward(
        self,
        hidden: torch.Tensor,
        latent: torch.Tensor,
        table: torch.Tensor | None,
        packed: PackedRows | None,
    ) -> Choice:
        """Of the layer's input and the queries' latent, both [T, B, …]; `table` is of S tokens."""
        is_cut, ranks = self.config.sequence_parallel, self.config.tensor_model_parallel_size
        tokens = len(hidden) * (ranks if is_cut else 1)
        seen = sight(tokens, packed, hidden.device)
        longest = tokens if packed is None else packed.longest
        has_choice = longest > self.facts.top_k
        if not (has_choice or self.is_learning):
            return Choice(asked=None, seen=seen, allowed=None)
        asked = self._ask(hidden.detach(), latent.detach(), table)
        allowed = self._choose(asked, seen) if has_choice else None
        return Choice(asked=asked, seen=seen, allowed=allowed)

    def _ask(self, hidden: torch.Tensor, latent: torch.Tensor, table: torch.Tensor | None) -> Asked:
        heads, dim = self.facts.heads, self.facts.head_dim
        q = self.linear_wq_b(latent).unflatten(-1, (heads, dim))
        k = self.k_norm(self.linear_wk(hidden))[:, :, None]
        rank = parallel_state.get_tensor_model_parallel_rank()
        first = rank * len(hidden) if self.config.sequence_parallel else 0
        if self.has_rope and table is not None:
            mine = table[first : first + len(hidden)]
            is_interleaved = self.facts.rope_interleaved
            q, k = (rotate(x, mine, is_interleaved=is_interleaved) for x in (q, k))
        k = k[:, :, 0]
        if self.config.sequence_parallel:
            k = cast("torch.Tensor", gather_from_sequence_parallel_region(k))
        weights = self.linear_weights_proj(hidden).float() * (heads * dim) ** -0.5
        return Asked(q=q, k=k, weights=weights, first=first)

    @torch.no_grad()
    def _choose(self, asked: Asked, seen: Sight) -> torch.Tensor:
        tokens, batch = asked.q.shape[:2]
        chosen = torch.empty(tokens, batch, len(asked.k), dtype=torch.bool, device=asked.q.device)
        for rows in blocks(tokens, rows_of_one=batch * self.facts.heads):
            chosen[rows] = _best(asked, rows, seen, self.facts.top_k).transpose(0, 1)
        if self.config.sequence_parallel:
            chosen = cast("torch.Tensor", gather_from_sequence_parallel_region(chosen))
        return chosen.transpose(0, 1)


def blocks(queries: int, *, rows_of_one: int) -> Iterator[slice]:
    """The queries in runs whose scores fit into memory; each has `rows_of_one` rows of them."""
    step = max(1, ROWS_AT_ONCE // rows_of_one)
    for start in range(0, queries, step):
        yield slice(start, min(start + step, queries))


def _best(asked: Asked, rows: slice, seen: Sight, top_k: int) -> torch.Tensor:
    """[B, R, S]. Over whole rows, so that equal scores are told apart alike at every layout."""
    visible = seen.of(asked.places(rows))
    scores = asked.scores(rows).masked_fill(~visible, -torch.inf)
    best = scores.topk(min(top_k, scores.shape[-1]), dim=-1).indices
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)
    return chosen & visible


class _KeyNorm(torch.nn.Module):
    """A layer norm with an eps of its own, whatever norm the model has."""

    def __init__(self, config: TransformerConfig, size: int) -> None:
        super().__init__()
        self.weight = norm_parameter(config, 1.0, size)
        self.bias = norm_parameter(config, 0.0, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, _NORM_EPS)
