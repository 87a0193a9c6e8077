"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434), as attention of one group.

Only the latent and the shared rotary key are cached. What projects the latent up to a head's keys
and values is applied to the queries and to the result instead, so every head attends to the same
keys: the latent and the rotary part end to end, the values being the latent again. Of several ranks
each has some of the heads, and the whole latent.
"""

import torch
from torch import Tensor

from llm_infer.arch import Arch, LayerRun
from llm_infer.kernels import Kernels
from llm_infer.model.attend import Attend, Scores
from llm_infer.model.attention import Carry
from llm_infer.model.cache import Pool, Step
from llm_infer.model.linear import multiply
from llm_infer.model.parameters import Parameters


class LatentAttention:
    """arch.json's `mla` without an indexer."""

    def __init__(
        self,
        arch: Arch,
        run: LayerRun,
        parameters: Parameters,
        kernels: Kernels,
        *,
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
        scores = Scores(
            scale=width**-0.5 if facts.scale is None else facts.scale, window=run.window
        )
        self._attend = Attend(scores, queries=facts.heads, block_tokens=block_tokens)

    def __call__(self, x_TH: Tensor, pool: Pool, step: Step, carry: Carry) -> Tensor:
        """[T, H] from [T, H], with the latents of the step put into the pool."""
        facts, tokens = self._facts, len(x_TH)
        latent, rope = self._kv_down(x_TH).split([facts.kv_lora_rank, facts.qk_rope_head_dim], -1)
        latent = self._kv_norm(latent) * facts.kv_scale
        rope = self._turned(rope[:, None], carry)[:, 0]
        pool.write(step.slots, torch.cat([latent, rope], dim=-1)[:, None], None)
        q_THD = self._queries(x_TH).view(tokens, facts.heads, -1) * facts.q_scale
        nope, rope = q_THD.split([facts.qk_nope_head_dim, facts.qk_rope_head_dim], dim=-1)
        absorbed = multiply(nope.transpose(0, 1), self._k_up_HDL()).transpose(0, 1)
        q_T1HD = torch.cat([absorbed, self._turned(rope, carry)], dim=-1)[:, None]
        mixed_THL = self._attend(q_T1HD, pool, step)[:, 0]
        out_HTD = multiply(mixed_THL.transpose(0, 1), self._v_up_HLD())
        return self._out(out_HTD.transpose(0, 1).reshape(tokens, -1))

    def _queries(self, x_TH: Tensor) -> Tensor:
        if self._q_down is None or self._q_norm is None:
            return self._q_up(x_TH)
        return self._q_up(self._q_norm(self._q_down(x_TH)))

    def _turned(self, x_THD: Tensor, carry: Carry) -> Tensor:
        if not self._rotates:
            return x_THD
        assert carry.cos_sin is not None
        return self._kernels.rope(x_THD, *carry.cos_sin, interleaved=self._interleaved)
