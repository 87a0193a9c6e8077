"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434), as attention of one group.

Only the latent and the shared rotary key are cached. What projects the latent up to a head's keys
and values is applied to the queries and to the result instead, so every head attends to the same
keys: the latent and the rotary part end to end, the values being the latent again. Of several ranks
each has some of the heads, and the whole latent.

With an indexer queries see the keys that it chose, or those that a layer before chose.
"""

import torch
from torch import Tensor

from llm_infer.arch import Arch, LayerRun
from llm_infer.kernels import Kernels
from llm_infer.model.attend import Attend, Scores
from llm_infer.model.attention import Carry
from llm_infer.model.cache import IndexedPool, Pool, Step
from llm_infer.model.indexer import Choice, Indexer
from llm_infer.model.linear import multiply
from llm_infer.model.parameters import Parameters


class LatentAttention:
    """arch.json's `mla`."""

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
        facts = arch.mla
        assert facts is not None, "arch.json: a latent attention layer without its facts"
        self._facts, self._kernels = facts, kernels
        self._rotates = arch.position.kind == "rope" and run.rope
        self._interleaved = arch.position.kind == "rope" and arch.position.interleaved
        at, norm_eps = "self_attention.", facts.norm_eps
        self._q_down = self._q_norm = None
        if facts.q_lora_rank is None:
            self._q_up = parameters.linear(at + "linear_q_proj")
        else:
            self._q_down = parameters.linear(at + "linear_q_down_proj")
            weight = parameters.tensor(at + "q_layernorm.weight")
            self._q_norm = parameters.rms_norm(weight, eps=norm_eps)
            self._q_up = parameters.linear(at + "linear_q_up_proj")
        self._kv_down = parameters.linear(at + "linear_kv_down_proj")
        weight = parameters.tensor(at + "kv_layernorm.weight")
        self._kv_norm = parameters.rms_norm(weight, eps=norm_eps)
        # [heads, nope + value channels, rank]
        up = parameters.matrices(at + "linear_kv_up_proj.weight")
        heads, nope = facts.heads, facts.qk_nope_head_dim
        self._k_up_HDL = up.arranged(lambda w: w.unflatten(0, (heads, -1))[:, :nope])
        self._v_up_HLD = up.arranged(
            lambda w: w.unflatten(0, (heads, -1))[:, nope:].transpose(1, 2)
        )
        self._out = parameters.row_parallel(at + "linear_proj")
        width = facts.qk_nope_head_dim + facts.qk_rope_head_dim
        self._scale = width**-0.5 if facts.scale is None else facts.scale
        self._attend = Attend(
            Scores(scale=self._scale, window=run.window),
            kernels,
            queries=facts.heads,
            block_tokens=block_tokens,
        )
        self._indexer = None
        if facts.has_indexer(layer):
            self._indexer = Indexer(arch, facts, parameters, kernels, rotates=self._rotates)

    def __call__(self, x_TH: Tensor, pool: Pool | IndexedPool, step: Step, carry: Carry) -> Tensor:
        """`carry.read` of [T, H] from [T, H]; the latents of the step go into the pool."""
        facts, tokens = self._facts, len(x_TH)
        q_latent = x_TH
        if self._q_down is not None and self._q_norm is not None:
            q_latent = self._q_norm(self._q_down(x_TH))
        if isinstance(pool, IndexedPool):
            assert self._indexer is not None
            carry.choice = self._indexer(x_TH, q_latent, pool.index, step, carry.cos_sin)
            pool = pool.kept
        latent, rope = self._kv_down(x_TH).split([facts.kv_lora_rank, facts.qk_rope_head_dim], -1)
        latent = self._kv_norm(latent) * facts.kv_scale
        rope = self._turned(rope[:, None], carry)[:, 0]
        pool.write(step.slots, torch.cat([latent, rope], dim=-1)[:, None], None)
        q_THD = self._q_up(q_latent).view(tokens, facts.heads, -1) * facts.q_scale
        nope, rope = q_THD.split([facts.qk_nope_head_dim, facts.qk_rope_head_dim], dim=-1)
        absorbed = multiply(nope.transpose(0, 1), self._k_up_HDL()).transpose(0, 1)
        q_T1HD = torch.cat([absorbed, self._turned(rope, carry)], dim=-1)[:, None]
        if carry.choice is None or not carry.choice.chosen:
            mixed_THL = self._attend(q_T1HD, pool, step)[:, 0]
        else:
            mixed_THL = self._attended_to(carry.choice, q_T1HD, pool)
        mixed_THL = carry.read(mixed_THL)
        out_HTD = multiply(mixed_THL.transpose(0, 1), self._v_up_HLD())
        return self._out(out_HTD.transpose(0, 1).flatten(1))

    def _attended_to(self, choice: Choice, q_T1HD: Tensor, pool: Pool) -> Tensor:
        """Mixed latents [T, H, L] of queries that see what was chosen."""
        rank = self._facts.kv_lora_rank
        if choice.rest.segments:
            mixed_THL = self._attend(q_T1HD, pool, choice.rest)[:, 0]
        else:
            mixed_THL = q_T1HD.new_empty(len(q_T1HD), self._facts.heads, rank)
        for one in choice.chosen:
            mixed_THL[one.rows] = self._kernels.sparse_attention(
                q_T1HD[one.rows, 0][None],
                one.of(pool),
                one.places,
                value_dim=rank,
                scale=self._scale,
            )[0]
        return mixed_THL

    def _turned(self, x_THD: Tensor, carry: Carry) -> Tensor:
        if not self._rotates:
            return x_THD
        assert carry.cos_sin is not None
        return self._kernels.rope(x_THD, *carry.cos_sin, interleaved=self._interleaved)
