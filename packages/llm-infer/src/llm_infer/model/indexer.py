"""The lightning indexer of DeepSeek sparse attention: which keys a query of latent attention sees.

Paper: https://github.com/deepseek-ai/DeepSeek-V3.2-Exp, DeepSeek_V3_2.pdf, section 1.

Queries up to the block that ends with key `top_k` see all keys before them. Of several ranks each
has the whole indexer, and chooses the same keys.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from llm_infer.arch import Arch, Mla
from llm_infer.kernels import Kernels
from llm_infer.model.cache import Keys, Pool, Segment, Step
from llm_infer.model.parameters import Parameters
from llm_infer.model.rope import relaid

NAME = "self_attention.core_attention.indexer."
_NORM_EPS = 1e-6

# T tokens of the step, t of a segment, S keys, H heads of the indexer, D their channels, K chosen


@dataclass(frozen=True, slots=True)
class Chosen:
    """A segment and the places [1, t, K] of the keys its queries see, among its `keys`."""

    segment: Segment
    keys: Keys
    places: Tensor

    @property
    def rows(self) -> slice:
        """Its queries among the step's."""
        return slice(self.segment.start, self.segment.stop)

    def of(self, pool: Pool) -> Tensor:
        """[1, S, channels] of a pool, up to the last query's own key."""
        return _up_to_last(self.segment, self.keys, pool)


@dataclass(frozen=True, slots=True)
class Choice:
    """What a step's queries see: some chosen keys; those of the step `rest` all before them."""

    chosen: tuple[Chosen, ...]
    rest: Step


class Indexer:
    """arch.json's `mla.indexer` in a layer that has one of its own."""

    def __init__(
        self, arch: Arch, mla: Mla, parameters: Parameters, kernels: Kernels, *, rotates: bool
    ) -> None:
        facts = mla.indexer
        assert facts is not None, "arch.json: an indexer without its facts"
        self._facts, self._kernels, self._rotates = facts, kernels, rotates
        self._is_model_interleaved = arch.position.kind == "rope" and arch.position.interleaved
        # Which keys are best follows small differences, so none of these is quantized.
        self._q = parameters.full_linear(NAME + "linear_wq_b")
        self._k = parameters.full_linear(NAME + "linear_wk")
        self._gain = parameters.tensor(NAME + "k_norm.weight")
        self._shift = parameters.tensor(NAME + "k_norm.bias")
        self._weights = parameters.full_linear(NAME + "linear_weights_proj")

    def __call__(
        self,
        x_TH: Tensor,
        latent_TL: Tensor,
        index: Pool,
        step: Step,
        cos_sin: tuple[Tensor, Tensor] | None,
    ) -> Choice:
        """What queries of the layer's input and their latent see; keys go into the `index`."""
        facts = self._facts
        k_TD = F.layer_norm(self._k(x_TH), self._gain.shape, self._gain, self._shift, _NORM_EPS)
        index.write(step.slots, self._turned(k_TD[:, None], cos_sin), None)
        found = list(zip(step.segments, step.keys_of(None), strict=True))
        choosing = [one for one in found if one[1].count > facts.top_k]
        if not choosing:
            return Choice((), step)
        q_THD = self._turned(self._q(latent_TL).unflatten(-1, (facts.heads, -1)), cos_sin)
        weights_TH = self._weights(x_TH).float() * (facts.heads * facts.head_dim) ** -0.5
        chosen = list[Chosen]()
        for segment, keys in choosing:
            rows = slice(segment.start, segment.stop)
            places = self._kernels.dsa_indexer(
                q_THD[None, rows],
                _up_to_last(segment, keys, index),
                weights_TH[None, rows],
                top_k=facts.top_k,
            )
            chosen.append(Chosen(segment, keys, places))
        seeing_all = tuple(segment for segment, keys in found if keys.count <= facts.top_k)
        return Choice(tuple(chosen), step.with_segments(seeing_all))

    def _turned(self, x_TND: Tensor, cos_sin: tuple[Tensor, Tensor] | None) -> Tensor:
        """With the first channels rotated, laid out as the indexer has them."""
        if not self._rotates:
            return x_TND
        assert cos_sin is not None
        is_interleaved = self._facts.rope_interleaved
        cos, sin = (
            relaid(one, interleaved=self._is_model_interleaved, wanted=is_interleaved)
            for one in cos_sin
        )
        return self._kernels.rope(x_TND, cos, sin, interleaved=is_interleaved)


def _up_to_last(segment: Segment, keys: Keys, pool: Pool) -> Tensor:
    block_tokens = keys.count // len(segment.blocks)
    hidden = block_tokens - segment.offset - (segment.stop - segment.start)
    return keys.of(pool.keys)[:, : keys.count - hidden]
