"""A decoder-only language model built from arch.json's primitives, one step at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_infer.arch import Arch, LayerRun
from llm_infer.kernels import Kernels
from llm_infer.model.attention import Attention, Carry, rotary_tables
from llm_infer.model.cache import CacheShape, LayerPool, StateShape, Step
from llm_infer.model.embedding import Embedding
from llm_infer.model.experts import Experts
from llm_infer.model.feed_forward import FeedForward
from llm_infer.model.group import ALONE, Group
from llm_infer.model.latent import LatentAttention
from llm_infer.model.parameters import Parameters, keeps_stored
from llm_infer.model.recurrent import GatedDeltaNet, MambaMixer, state_shape
from llm_infer.model.rope import grows_from, short_length
from llm_infer.model.rowwise import by_row
from llm_infer.model.runner import LocalRunner
from llm_infer.model.sharding import share_of
from llm_infer.model.static_step import Recorder
from llm_infer.model.support import require_runnable
from llm_infer.weights import Quantization, WeightSource

# T tokens of the step, H hidden size, V vocabulary, R rows whose logits are wanted
_MIXERS = {
    "attention": Attention,
    "mla": LatentAttention,
    "gdn": GatedDeltaNet,
    "mamba2": MambaMixer,
}
# Each takes the kind of pool that its layer's shape makes.
_Mixer = Callable[[Tensor, Any, Step, Carry], Tensor]


class Decoder:
    """The weights of a model and what computes with them; keys and values are outside."""

    def __init__(
        self,
        arch: Arch,
        source: WeightSource,
        kernels: Kernels,
        *,
        device: torch.device,
        dtype: torch.dtype,
        context: int,
        block_tokens: int,
        quantization: Quantization | None = None,
        group: Group = ALONE,
        recorder: Recorder | None = None,
    ) -> None:
        """`context` bounds positions. With a `group` this is its rank's share of the model.

        With a `recorder` steps of one token a text are replayed (see `static_step`).

        Raises InferError for a model with layers that are not supported, or not divisible.
        """
        require_runnable(arch, ranks=group.size)
        parameters = Parameters(
            source,
            arch,
            kernels,
            device=device,
            dtype=dtype,
            quantization=quantization,
            group=group,
        )
        self.arch, self.device, self.dtype = arch, device, dtype
        self.context, self._group = context, group
        self._weights = kept_weights(source, kernels, dtype, quantization)
        self._block_tokens = block_tokens
        self._recorder = recorder
        self.short_length, self.grows_from = short_length(arch), grows_from(arch)
        self._embedding = Embedding(parameters.table("embedding.word_embeddings.weight"), group)
        self._positions = None
        if arch.position.kind == "learned":
            self._positions = parameters.tensor("embedding.position_embeddings.weight")
        self._embedding_norm = parameters.norm("embedding.norm") if arch.embedding_norm else None
        self._rope = rotary_tables(arch, context=context, device=device)
        share = share_of(arch, group.size)
        self._layers = [
            _Layer(
                share,
                run,
                parameters.under(f"decoder.layers.{index}."),
                kernels,
                layer=index,
                block_tokens=block_tokens,
            )
            for index, run in enumerate(arch.each_layer())
        ]
        self._final_norm = parameters.norm("decoder.final_layernorm")
        self._output = parameters.linear(
            "embedding.word_embeddings" if arch.tie_embeddings else "output_layer",
            change=_unit_rows if arch.output_normalized else None,
        )

    @property
    def cache_shapes(self) -> list[CacheShape | StateShape | None]:
        """What each layer keeps of a text."""
        return [layer.cache_shape for layer in self._layers]

    @property
    def place(self) -> str:
        """Where it computes, and how weights are kept, as told to users."""
        return place_of(self.device, self._weights)

    def runner(self, *, num_blocks: int, block_tokens: int) -> LocalRunner:
        """A new cache to compute over, in blocks of the size that attention was made for."""
        assert block_tokens == self._block_tokens, (block_tokens, self._block_tokens)
        return LocalRunner(
            self, num_blocks=num_blocks, block_tokens=block_tokens, recorder=self._recorder
        )

    @torch.inference_mode()
    def forward(self, step: Step, pools: Sequence[LayerPool | None]) -> Tensor:
        """float32 logits [R, V] of the step's `last_rows`; on ranks other than 0 a part of V."""
        scalars, carry = self.arch.scalars, Carry()
        if self._rope is not None:
            carry.cos_sin = self._rope.at(step.positions, step.variants)
        x_TH = self._embedding(step.tokens)
        if self._positions is not None:
            x_TH = x_TH + self._positions[step.positions]
        if scalars.embedding != 1.0:
            x_TH = x_TH * scalars.embedding
        if self._embedding_norm is not None:
            x_TH = self._embedding_norm(x_TH)
        for layer, pool in zip(self._layers, pools, strict=True):
            # Of a prompt's tokens the last layer needs only keys and values.
            if layer is self._layers[-1] and len(step.last_rows) < len(x_TH):
                carry.rows = step.last_rows
            x_TH = layer(x_TH, pool, step, carry)
        return self._logits(x_TH if carry.rows is not None else x_TH[step.last_rows])

    def _logits(self, x_RH: Tensor) -> Tensor:
        scalars = self.arch.scalars
        logits_RV = self._output(self._final_norm(x_RH)).float()
        if scalars.logits != 1.0:
            logits_RV = logits_RV * scalars.logits
        cap = scalars.logit_softcap
        if cap is not None:
            logits_RV = by_row(torch.tanh, logits_RV / cap) * cap
        if self._group.size == 1 or not len(logits_RV):
            return logits_RV
        return self._group.collected(logits_RV)[:, : self.arch.vocab_size]


def place_of(device: torch.device, weights: str | None) -> str:
    """A device, and how weights are kept where that is not as numbers of the model's type."""
    return str(device) if weights is None else f"{device}, {weights} weights"


def kept_weights(
    source: WeightSource, kernels: Kernels, dtype: torch.dtype, quantization: Quantization | None
) -> str | None:
    """How large weights are kept; None: as numbers of the model's type."""
    if quantization is not None:
        return quantization
    stored = source.dtype("embedding.word_embeddings.weight")
    if stored == dtype or not keeps_stored(kernels, dtype):
        return None
    return str(stored).removeprefix("torch.")


def cache_shapes(arch: Arch) -> list[CacheShape | StateShape | None]:
    """What each layer of a whole model keeps of a token; known before its weights are."""
    return [_cache_shape(arch, run, index) for index, run in enumerate(arch.each_layer())]


class _Layer:
    """A mixer and a feed-forward, each between its norms, each added to what it read."""

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
        self._residual = arch.scalars.residual
        self.cache_shape = _cache_shape(arch, run, layer)
        self._mixer: _Mixer | None = None
        if run.mixer != "none":
            make = _MIXERS[run.mixer]
            self._mixer = make(
                arch, run, parameters, kernels, layer=layer, block_tokens=block_tokens
            )
        self._feed_forward: Callable[[Tensor], Tensor] | None = None
        self._shortcut = None
        if run.feed_forward in ("dense", "dense_shortcut_moe"):
            assert arch.mlp is not None
            self._feed_forward = FeedForward(arch.mlp, parameters, "mlp")
        elif run.feed_forward == "moe":
            self._feed_forward = Experts(arch, parameters, "mlp")
        if run.feed_forward == "dense_shortcut_moe":
            self._shortcut = Experts(arch, parameters, "shortcut_moe")
        self._around_mixer = self._around_feed_forward = (_same, _same)
        if self._mixer is not None:
            self._around_mixer = _norms(
                arch, parameters, "input_layernorm", "post_self_attn_layernorm"
            )
        if self._feed_forward is not None:
            self._around_feed_forward = _norms(
                arch, parameters, "pre_mlp_layernorm", "post_mlp_layernorm"
            )

    def __call__(self, x_TH: Tensor, pool: LayerPool | None, step: Step, carry: Carry) -> Tensor:
        """`carry.read` of [T, H] from [T, H]."""
        pending, carry.shortcut = carry.shortcut, None
        if self._mixer is not None and pool is not None:
            before, after = self._around_mixer
            mixed_TH = self._mixer(before(x_TH), pool, step, carry)
            x_TH = self._added(carry.read(x_TH), after(mixed_TH))
        else:
            x_TH = carry.read(x_TH)
        if self._feed_forward is not None and len(x_TH):
            before, after = self._around_feed_forward
            seen_TH = before(x_TH)
            if self._shortcut is not None:
                carry.shortcut = self._shortcut(seen_TH)
            x_TH = self._added(x_TH, after(self._feed_forward(seen_TH)))
        return x_TH if pending is None else x_TH + carry.read(pending)

    def _added(self, x_TH: Tensor, change_TH: Tensor) -> Tensor:
        return x_TH + (change_TH if self._residual == 1.0 else self._residual * change_TH)


_Norm = Callable[[Tensor], Tensor]


def _norms(arch: Arch, parameters: Parameters, before: str, after: str) -> tuple[_Norm, _Norm]:
    """Norms of a block's input and output; `_same` where the model has none."""
    placement = arch.norm.placement
    return (
        _same if placement == "post" else parameters.norm(before),
        _same if placement == "pre" else parameters.norm(after),
    )


def _cache_shape(arch: Arch, run: LayerRun, layer: int) -> CacheShape | StateShape | None:
    if run.mixer == "attention" and arch.attention is not None:
        facts = arch.attention
        return CacheShape(facts.query_groups, facts.head_dim, facts.head_dim)
    if run.mixer == "mla" and arch.mla is not None:
        mla, rank = arch.mla, arch.mla.kv_lora_rank
        width = rank + mla.qk_rope_head_dim
        indexer = mla.indexer if mla.has_indexer(layer) else None
        index_dim = 0 if indexer is None else indexer.head_dim
        return CacheShape(1, width, rank, is_one=True, index_dim=index_dim)
    return state_shape(arch, run)


def _same(x: Tensor) -> Tensor:
    return x


def _unit_rows(weight_VH: Tensor) -> Tensor:
    return F.normalize(weight_VH, dim=1)
