"""One decoder layer: norms before and after each block, scaled residuals."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import checkpoint
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
)

from llm_train.handover import ALONE, Handover
from llm_train.model.recompute import Recomputed
from llm_train.model.shortcut import Work, beside

# An output, the bias that is still to add to it, and what is made beside it, if anything.
_Made = tuple[torch.Tensor | None, ...]


@dataclass
class LayerSubmodules(TransformerLayerSubmodules):
    """Adds the norms on the outputs of both blocks, and experts beside a dense feed-forward."""

    post_self_attn_layernorm: ModuleSpec | type = IdentityOp
    post_mlp_layernorm: ModuleSpec | type = IdentityOp
    shortcut_moe: ModuleSpec | type = IdentityOp


class Layer(TransformerLayer):
    """hidden + scale · norm(mixer(norm(hidden))), then the same with the feed-forward.

    A layer may lack either block. `mixer_name` is the attribute, and so the parameters' name;
    `handover` says what passes between this layer and its neighbours beside hidden states.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: LayerSubmodules,
        *args: Any,
        residual_scale: float = 1.0,
        mixer_name: str = "self_attention",
        handover: Handover = ALONE,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, submodules, *args, **kwargs)
        self.handover = handover
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
        self.shortcut_moe = cast("Any", build_module(submodules.shortcut_moe, config=config))
        self.has_shortcut = not isinstance(self.shortcut_moe, IdentityOp)
        if self.has_shortcut:
            self.shortcut_moe.set_layer_number(self.layer_number)

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
        """[T, B, hidden] → the same; `context` is what the layer before hands on, if anything."""

        def mix(x: torch.Tensor) -> _Made:
            return getattr(self, self.mixer_name)(
                x,
                attention_mask=attention_mask,
                rotary_pos_emb=rotary_pos_emb,
                packed_seq_params=packed_seq_params,
                **({"lent": context} if self.handover.borrows else {}),
            )

        hidden, made = hidden_states, context
        if self.has_mixer:
            hidden, lent = self._block(
                hidden,
                self.input_layernorm,
                mix,
                self.post_self_attn_layernorm,
                is_norm_recomputed=self.recompute_input_layernorm,
            )
            made = made if lent is None else lent
        if self.has_feed_forward:
            hidden, branch = self._block(
                hidden,
                self.pre_mlp_layernorm,
                self._feed_forward(padding_mask),
                self.post_mlp_layernorm,
                is_norm_recomputed=self.recompute_pre_mlp_layernorm,
            )
            made = made if branch is None else branch
        if self.handover.adds:
            assert context is not None
            hidden = hidden + self._dropped(context)
        return hidden, made if self.handover.hands_on else None

    def _block(
        self,
        hidden: torch.Tensor,
        norm_before: Callable[[torch.Tensor], torch.Tensor],
        work: Callable[[torch.Tensor], _Made],
        norm_after: Callable[[torch.Tensor], torch.Tensor],
        *,
        is_norm_recomputed: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One residual branch, and what was made beside it.

        Its first norm is computed again in backward when told to.
        """
        norm = Recomputed(is_on=is_norm_recomputed and self.training)
        # Through a view the norm's gradients meet before the residual's joins them, as they do when
        # the norm is computed again: sums of three depend on their order in the last bit.
        out, bias, *made = work(norm.call(norm_before, hidden.view_as(hidden)))
        assert out is not None
        norm.drop_before(out)
        out = self._dropped(norm_after(out if bias is None else out + bias))
        out = out if self.residual_scale == 1.0 else out * self.residual_scale
        return hidden + out, made[0] if made else None

    def _dropped(self, out: torch.Tensor) -> torch.Tensor:
        return F.dropout(out, self.hidden_dropout, self.training)

    def _feed_forward(self, padding_mask: torch.Tensor | None) -> Callable[[torch.Tensor], _Made]:
        def plain(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            return self.mlp(x, padding_mask=padding_mask)

        def recomputed(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            return cast("tuple[torch.Tensor, torch.Tensor | None]", checkpoint(plain, False, x))

        def experts(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            return self.shortcut_moe(x, padding_mask=padding_mask)

        dense: Work = recomputed if self.recompute_mlp and self.training else plain
        return beside(experts, dense) if self.has_shortcut else dense
