"""One decoder layer: norms before and after each block, scaled residuals."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from megatron.core.tensor_parallel import checkpoint
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
)

from llm_train.model.recompute import Recomputed


@dataclass
class LayerSubmodules(TransformerLayerSubmodules):
    """Adds the norms on the outputs of both blocks."""

    post_self_attn_layernorm: ModuleSpec | type = IdentityOp
    post_mlp_layernorm: ModuleSpec | type = IdentityOp


class Layer(TransformerLayer):
    """hidden + scale · norm(mixer(norm(hidden))), then the same with the feed-forward.

    A layer may lack either block. `mixer_name` is the attribute, and so the parameters' name.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: LayerSubmodules,
        *args: Any,
        residual_scale: float = 1.0,
        mixer_name: str = "self_attention",
        **kwargs: Any,
    ) -> None:
        super().__init__(config, submodules, *args, **kwargs)
        self.mixer_name = mixer_name
        if mixer_name != "self_attention":
            self.add_module(mixer_name, self.self_attention)
            self.self_attention = IdentityOp()
        self.has_mixer = not isinstance(getattr(self, mixer_name), IdentityOp)
        self.has_feed_forward = not isinstance(self.mlp, IdentityOp)
        self.residual_scale = residual_scale
        sizes = {"hidden_size": config.hidden_size, "eps": config.layernorm_epsilon}
        self.post_self_attn_layernorm = cast(
            "torch.nn.Module",
            build_module(submodules.post_self_attn_layernorm, config=config, **sizes),
        )
        self.post_mlp_layernorm = cast(
            "torch.nn.Module", build_module(submodules.post_mlp_layernorm, config=config, **sizes)
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        rotary_pos_emb: torch.Tensor | None = None,
        packed_seq_params: object = None,
        padding_mask: torch.Tensor | None = None,
        **_ignored: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[T, B, hidden] → the same; `context` goes through untouched."""

        def mix(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            return getattr(self, self.mixer_name)(
                x,
                attention_mask=attention_mask,
                rotary_pos_emb=rotary_pos_emb,
                packed_seq_params=packed_seq_params,
            )

        hidden = hidden_states
        if self.has_mixer:
            hidden = self._block(
                hidden,
                self.input_layernorm,
                mix,
                self.post_self_attn_layernorm,
                is_norm_recomputed=self.recompute_input_layernorm,
            )
        if self.has_feed_forward:
            hidden = self._block(
                hidden,
                self.pre_mlp_layernorm,
                self._feed_forward(padding_mask),
                self.post_mlp_layernorm,
                is_norm_recomputed=self.recompute_pre_mlp_layernorm,
            )
        return hidden, context

    def _block(
        self,
        hidden: torch.Tensor,
        norm_before: Callable[[torch.Tensor], torch.Tensor],
        work: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]],
        norm_after: Callable[[torch.Tensor], torch.Tensor],
        *,
        is_norm_recomputed: bool,
    ) -> torch.Tensor:
        """One residual branch; its first norm is computed again in backward when told to."""
        norm = Recomputed(is_on=is_norm_recomputed and self.training)
        # Through a view the norm's gradients meet before the residual's joins them, as they do when
        # the norm is computed again: sums of three depend on their order in the last bit.
        out, bias = work(norm.call(norm_before, hidden.view_as(hidden)))
        norm.drop_before(out)
        out = norm_after(out if bias is None else out + bias)
        return hidden + (out if self.residual_scale == 1.0 else out * self.residual_scale)

    def _feed_forward(
        self, padding_mask: torch.Tensor | None
    ) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]:
        def plain(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            return self.mlp(x, padding_mask=padding_mask)

        def recomputed(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            return cast("tuple[torch.Tensor, torch.Tensor | None]", checkpoint(plain, False, x))

        return recomputed if self.recompute_mlp and self.training else plain
