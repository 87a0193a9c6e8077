"""Attention layers: projections, norms and rotation of queries and keys, around `attend`."""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llm_infer.arch import Arch, LayerRun
from llm_infer.compiled.kernels import CompiledKernels
from llm_infer.compiled.library import Library
from llm_infer.kernels import Kernels
from llm_infer.model.attend import Attend, Scores
from llm_infer.model.cache import Pool, Step
from llm_infer.model.parameters import Parameters
from llm_infer.model.rope import GrowingRope, RopeTables, Rotation, grows_from
from llm_infer.model.rowwise import by_row

if TYPE_CHECKING:
    from llm_infer.model.indexer import Choice

Norm = Callable[[Tensor], Tensor]
Turn = Callable[[Tensor], Tensor]


@dataclass(slots=True)
class Carry:
    """What layers of one forward hand on: tables, borrowed keys and values, keys that an indexer
    chose, a pending shortcut.
    """

    cos_sin: tuple[Tensor, Tensor] | None = None
    borrowed: tuple[Tensor, Tensor] | None = None
    choice: "Choice | None" = None
    shortcut: Tensor | None = None
    rows: Tensor | None = None
    """Those tokens that something reads beyond this layer's cache, in the last layer; None: all."""

    def read(self, x_T: Tensor) -> Tensor:
        """What of a tensor with a row a token is read on."""
        return x_T if self.rows is None else x_T[self.rows]


class Attention:
    """Grouped-query attention with whatever arch.json's `attention` says."""

    def __init__(
        self,
        arch: Arch,
        run: LayerRun,
        parameters: Parameters,
        kernels: Kernels,
        *,
        layer: int,
        block_tokens: int,
    ) -> None:
        del layer
        facts = arch.attention
        assert facts is not None, "arch.json: an attention layer without its facts"
        self._facts, self._kernels = facts, kernels
        self._queries = facts.heads // facts.query_groups
        self._rotates = arch.position.kind == "rope" and run.rope
        self._interleaved = arch.position.kind == "rope" and arch.position.interleaved
        at = "self_attention."
        self._owns_kv = parameters.has(at + "linear_qkv.weight")
        # Ranks that have the same keys and values.
        ranks = parameters.ranks_of_a_group
        if self._owns_kv and ranks > 1:
            self._in = parameters.shared_qkv(
                at + "linear_qkv", queries=self._queries, head_dim=facts.head_dim, ranks=ranks
            )
        else:
            self._in = parameters.linear(at + ("linear_qkv" if self._owns_kv else "linear_q"))
        self._out = parameters.row_parallel(at + "linear_proj")
        self._norms: dict[str, Norm] = {}
        if facts.qk_norm != "none":
            names = {part: f"{at}{part}_layernorm" for part in "qk"}
            if facts.qk_norm == "full":
                q_norm = parameters.norm_across(names["q"])
                self._norms = {"q": q_norm, "k": parameters.norm_across(names["k"], ranks=ranks)}
            else:
                self._norms = {part: parameters.norm(name) for part, name in names.items()}
                joint = parameters.stacked_norm([*[names["q"]] * self._queries, names["k"]])
                if joint is not None:
                    self._norms["qk"] = joint
        # A group's key lies behind its queries, so they can be normed and rotated in one.
        has_norm = facts.qk_norm == "none" or "qk" in self._norms
        self._is_joint = self._owns_kv and not facts.output_gate and has_norm
        sinks = None
        if facts.sinks:
            stored = parameters.tensor(at + "core_attention.softmax_offset").float()
            sinks = stored.view(facts.query_groups, 1, self._queries)
        slopes = None
        if arch.position.kind == "alibi" and run.rope:
            group = parameters.group
            own = alibi_slopes(facts.heads * group.size).chunk(group.size)[group.rank]
            slopes = own.to(parameters.device).view(facts.query_groups, self._queries, 1)
        self._placing = None
        if isinstance(kernels, CompiledKernels) and parameters.dtype == torch.float32:
            self._placing = self._placing_of(arch, kernels.functions, parameters, at)
        scores = Scores(
            scale=facts.head_dim**-0.5 if facts.scale is None else facts.scale,
            softcap=facts.softcap,
            window=run.window,
            sinks=sinks,
            slopes=slopes,
        )
        self._attend = Attend(scores, kernels, queries=self._queries, block_tokens=block_tokens)

    def __call__(self, x_TH: Tensor, pool: Pool, step: Step, carry: Carry) -> Tensor:
        """`carry.read` of [T, H] from [T, H]; keys and values of the step go into the pool."""
        # The rows of each group: its queries, their gates, then its key and value.
        rows = self._in(x_TH).view(len(x_TH), self._facts.query_groups, -1, self._facts.head_dim)
        if self._owns_kv:
            carry.borrowed = rows[:, :, -2:-1], rows[:, :, -1]
        assert carry.borrowed is not None, "arch.json: the first layer cannot borrow keys"
        k_TG1D, v_TGD = carry.borrowed
        if self._placing is not None and step.tables is None:
            self._placing(rows, pool, step, carry)
            q_TGRD = rows[:, :, : self._queries]
            return self._mixed(q_TGRD, rows, pool, step, carry)
        if self._is_joint:
            placed_TGND = self._placed(rows[:, :, :-1], "qk", carry)
            q_TGRD, k_TGD = placed_TGND[:, :, :-1], placed_TGND[:, :, -1]
        else:
            q_TGRD = self._placed(rows[:, :, : self._queries], "q", carry)
            k_TGD = self._placed(k_TG1D, "k", carry)[:, :, 0]
        pool.write(step.slots, k_TGD, v_TGD)
        return self._mixed(q_TGRD, rows, pool, step, carry)

    def _mixed(self, q_TGRD: Tensor, rows: Tensor, pool: Pool, step: Step, carry: Carry) -> Tensor:
        """[T, H] of queries over the pool; `rows` has their gates."""
        out_TC = carry.read(self._attend(q_TGRD, pool, step)).flatten(1)
        if self._facts.output_gate:
            gates = carry.read(rows[:, :, self._queries : 2 * self._queries]).flatten(1)
            return self._out(out_TC * by_row(torch.sigmoid, gates))
        return self._out(out_TC)

    def _placing_of(
        self, arch: Arch, functions: Library, parameters: Parameters, at: str
    ) -> "_Placing | None":
        """One call for norms, rotation and the cache; None where it cannot be one."""
        facts = self._facts
        # Layers that borrow want keys and values as they were projected.
        if facts.shared_kv != 1 or facts.qk_norm == "full":
            return None
        gain = None
        if facts.qk_norm != "none":
            q, k = (parameters.rms_gain(f"{at}{part}_layernorm") for part in "qk")
            if q is None or k is None or q.dim() != 1:
                return None
            gain = torch.stack([*[q] * self._queries, k])
        return _Placing(
            functions,
            queries=self._queries,
            gain=gain,
            eps=arch.norm.eps,
            norm_is_last=facts.qk_norm == "head_after_rope",
            rotates=self._rotates,
            interleaved=self._interleaved,
        )

    def _placed(self, x_TGRD: Tensor, part: str, carry: Carry) -> Tensor:
        """Queries or keys, or both, normed and rotated, in the model's order."""
        kind = self._facts.qk_norm
        if kind == "head":
            x_TGRD = self._norms[part](x_TGRD)
        elif kind == "full":
            x_TGRD = self._norms[part](x_TGRD.flatten(1)).view(x_TGRD.shape)
        if self._rotates:
            assert carry.cos_sin is not None
            cos, sin = (table[:, None] for table in carry.cos_sin)
            x_TGRD = self._kernels.rope(x_TGRD, cos, sin, interleaved=self._interleaved)
        return self._norms[part](x_TGRD) if kind == "head_after_rope" else x_TGRD


@dataclass(frozen=True, slots=True)
class _Placing:
    """Norms and rotation of queries and keys where they are; keys and values into the pool."""

    functions: Library
    _: KW_ONLY
    queries: int
    gain: Tensor | None
    eps: float
    norm_is_last: bool
    rotates: bool
    interleaved: bool

    def __call__(self, rows_TGND: Tensor, pool: Pool, step: Step, carry: Carry) -> None:
        """`rows_TGND` is changed."""
        assert carry.cos_sin is not None or not self.rotates
        self.functions.place_heads(
            rows_TGND,
            carry.cos_sin if self.rotates else None,
            step.slots,
            pool.keys,
            pool.values,
            queries=self.queries,
            gain=self.gain,
            eps=self.eps,
            norm_is_last=self.norm_is_last,
            interleaved=self.interleaved,
        )


def rotary_width(arch: Arch) -> int | None:
    """Channels that rotate; None where none do."""
    if arch.position.kind != "rope":
        return None
    if arch.mla is not None:
        return arch.mla.qk_rope_head_dim
    return int(arch.attention.head_dim * arch.position.fraction) if arch.attention else None


def rotary_tables(arch: Arch, *, context: int, device: torch.device) -> Rotation | None:
    """What the model's rotating channels turn by; None where nothing rotates."""
    width = rotary_width(arch)
    if not width:
        return None
    make = RopeTables if grows_from(arch) is None else GrowingRope
    return make(arch, width=width, context=context, device=device)


def alibi_slopes(heads: int) -> Tensor:
    """2^(-8i/n) for the largest power of two n ≤ heads; the rest from the odd ones of 2n.

    https://arxiv.org/abs/2108.12409, and its authors' code for other numbers of heads.
    """
    n = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / n) for i in range(n)]
    slopes += [2 ** (-8 * (2 * i + 1) / (2 * n)) for i in range(heads - n)]
    return torch.tensor(slopes)
