"""The model chunks of one rank, from `arch.json` alone."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from llm_train.arch import Arch, Rope
from llm_train.config import ContextParallel, MoeConfig, ParallelConfig, RecomputeConfig
from llm_train.model.chunked_loss import Parts, chunked_losses
from llm_train.model.ends import finish_ends, is_product_alone
from llm_train.model.fields import config_fields
from llm_train.model.kernels import kernels_of
from llm_train.model.learned import LearnedTokens
from llm_train.model.moe_options import moe_fields
from llm_train.model.mtp import Ahead
from llm_train.model.packed_rows import PackedRows
from llm_train.model.recompute import recompute_fields, set_modules
from llm_train.model.rope import Rotary, at_positions, rotary_dim
from llm_train.model.spec import block_spec, prediction_spec
from llm_train.model.token_losses import projected_losses, token_losses
from llm_train.placement import chunks

POSITION_EMBEDDINGS: Mapping[str, Any] = MappingProxyType(
    {"rope": "rope", "learned": "learned_absolute", "alibi": "none", "none": "none"}
)
# parallel.cp_kind → megatron-core's word for it, which CoreAttention reads.
CONTEXT_PARALLEL: Mapping[ContextParallel, str] = MappingProxyType(
    {
        ContextParallel.RING: "p2p",
        ContextParallel.ULYSSES: "a2a",
        ContextParallel.HYBRID: "a2a+p2p",
        ContextParallel.ALLGATHER: "all_gather",
    }
)


class Model(GPTModel):
    """GPTModel whose loss does not see the rows that pad the vocabulary.

    Tokens turn by their own `position_ids` where these are not simply 0, 1, 2, …: when a rank
    holds a share of the sequence, or a row several documents.
    """

    def __init__(self, *args: Any, real_vocab_size: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.real_vocab_size = real_vocab_size
        # Frozen but for adapters (llm_train.model.lora).
        self.is_adapted = False
        # Tokens of a micro-batch whose logits exist at a time; None = all.
        self.loss_chunk: int | None = None

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # less: nothing of inference
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        labels: torch.Tensor | None = None,
        packed_seq_params: PackedRows | None = None,
        learned: LearnedTokens | None = None,
        padding_mask: torch.Tensor | None = None,
        sequence_tokens: torch.Tensor | None = None,
        ahead: Sequence[Ahead] = (),
    ) -> torch.Tensor:
        """Hidden states for the next stage [T, B, hidden]; on the last one logits [B, T, V / tp].

        Tokens of `padding_mask` [B, T] balance no experts. `sequence_tokens` [B, T], the length of
        each token's sequence or document, is for `turns_by_length`; None = all of the row.
        With labels [B, T] token losses [B, T], and with what prediction layers are given
        [1 + layers, B, T], theirs behind the main one. Losses are of the `learned` tokens alone, 0
        elsewhere; None = of all.
        """
        hidden, table, *_ = self._preprocess(
            input_ids, position_ids, packed_seq_params=packed_seq_params
        )
        if (rotary := self._rotary_by_length) is not None and sequence_tokens is not None:
            table = rotary.of_tokens(position_ids, sequence_tokens)
        shared = {
            "attention_mask": attention_mask,
            "rotary_pos_emb": table,
            "packed_seq_params": packed_seq_params,
            "padding_mask": self._own_slice(padding_mask),
        }
        hidden = self.decoder(hidden_states=hidden, **shared)
        if not self.post_process:
            return hidden
        if labels is None:
            return self._logits(hidden).transpose(0, 1).contiguous()
        losses = [self._losses(hidden, labels, learned)]
        if not ahead:
            return losses[0]
        for layer, batch in zip(self.mtp.layers, ahead, strict=True):
            hidden = layer(hidden, self.embedding(batch.tokens, batch.position_ids), shared)
            losses.append(self._losses(hidden, batch.labels, batch.learned))
        return torch.stack(losses)

    @property
    def turns_by_length(self) -> bool:
        """How fast a token turns depends on the length of its sequence."""
        return self._rotary_by_length is not None

    @property
    def _rotary_by_length(self) -> Rotary | None:
        rotary = getattr(self, "rotary_pos_emb", None)
        return rotary if isinstance(rotary, Rotary) and rotary.is_by_length else None

    def _is_in_embd_group(self) -> bool:
        """No: two copies of an embedding are filled alike, by name, after they are built.

        megatron-core would make them equal here, where neither holds anything yet.
        """
        return False

    def _losses(
        self, hidden: torch.Tensor, labels: torch.Tensor, learned: LearnedTokens | None
    ) -> torch.Tensor:
        """[T, B, hidden] and labels [B, T] → token losses [B, T], without logits of the others."""
        if learned is None:
            return self._all_losses(hidden, labels)
        rank = self.pg_collection.tp.rank() if self.config.sequence_parallel else 0
        found = self._all_losses(learned.hidden(hidden, rank=rank), learned.labels(labels))
        return learned.spread(found, labels.shape)

    def _all_losses(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[T, B, hidden] and labels [B, T] → token losses [B, T]."""
        if self.loss_chunk is None:
            return self.compute_language_model_loss(labels, self._logits(hidden))
        is_tied = self.share_embeddings_and_output_weights
        tied = [self.shared_embedding_or_output_weight()] if is_tied else []
        kernels = kernels_of(self.config)
        is_whole = self.pg_collection.tp.size() == 1
        if kernels is not None and is_whole and is_product_alone(self.output_layer):
            weight = tied[0] if is_tied else self.output_layer.weight
            assert weight is not None
            return projected_losses(kernels, labels, hidden, weight, chunk=self.loss_chunk)
        is_sliced = self.config.sequence_parallel
        return chunked_losses(
            lambda part, labels: self.compute_language_model_loss(labels, self._logits(part)),
            hidden,
            labels,
            # On the last of several stages both are one.
            parameters=list(dict.fromkeys([*self.output_layer.parameters(), *tied])),
            parts=Parts(
                tokens=self.loss_chunk, ranks=self.pg_collection.tp.size() if is_sliced else 1
            ),
        )

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[T, B, hidden] → [T, B, V / tp]."""
        is_tied = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if is_tied else None
        return self.output_layer(hidden, weight=weight)[0]

    def _own_slice(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """What of [B, T] this rank's layers see: a slice of T under sequence parallel."""
        if mask is None or not self.config.sequence_parallel:
            return mask
        group = self.pg_collection.tp
        return mask.chunk(group.size(), dim=1)[group.rank()].contiguous()

    def _preprocess(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        *args: Any,
        packed_seq_params: PackedRows | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """megatron-core's (hidden, rotary table, …), the table [T, 1 or B, 1, rotary_dim]."""
        hidden, table, *rest = super()._preprocess(
            input_ids,
            position_ids,
            *args,
            packed_seq_params=packed_seq_params,  # pyright: ignore[reportArgumentType]  # by shape
            **kwargs,
        )
        if table is not None and packed_seq_params is not None:
            table = at_positions(table, position_ids)
        elif table is not None and self.config.context_parallel_size > 1:
            table = at_positions(table, position_ids[:1])
        return (hidden, table, *rest)

    def compute_language_model_loss(
        self, labels: torch.Tensor, logits: torch.Tensor
    ) -> torch.Tensor:
        """Token losses [B, T] of labels [B, T] and logits [T, B, V / tp]."""
        # Only the last ranks can hold padding
        rank, columns = self.pg_collection.tp.rank(), logits.shape[-1]
        real = max(0, min(columns, self.real_vocab_size - rank * columns))
        if real < columns:
            padding = torch.arange(columns, device=logits.device) >= real
            logits = logits.masked_fill(padding, torch.finfo(logits.dtype).min)
        kernels = kernels_of(self.config)
        if kernels is None:
            return super().compute_language_model_loss(labels, logits)
        return token_losses(kernels, labels, logits, group=self.pg_collection.tp)


def padded_vocab_size(arch: Arch, tp: int) -> int:
    """Rows of the embedding when every tensor-parallel rank holds as many."""
    return -(-arch.vocab_size // tp) * tp


def transformer_config(
    arch: Arch,
    parallel: ParallelConfig,
    *,
    dtype: torch.dtype,
    init_std: float = 0.02,
    recompute: RecomputeConfig | None = None,
    moe: MoeConfig | None = None,
    is_frozen: bool = False,
) -> TransformerConfig:
    """megatron-core's config: `arch`, the layout, and features that need neither TE nor Apex.

    `is_frozen`: nothing but adapters is trained.
    """
    recompute = recompute or RecomputeConfig()
    config = TransformerConfig(
        **config_fields(arch),
        **(moe_fields(moe or MoeConfig(), is_frozen=is_frozen) if arch.moe is not None else {}),
        tensor_model_parallel_size=parallel.tp,
        context_parallel_size=parallel.cp,
        cp_comm_type=CONTEXT_PARALLEL[parallel.cp_kind],
        hierarchical_context_parallel_sizes=[
            parallel.ulysses_degree,
            parallel.cp // parallel.ulysses_degree,
        ],
        pipeline_model_parallel_size=parallel.pp,
        virtual_pipeline_model_parallel_size=parallel.vpp,
        pipeline_model_parallel_layout=stage_layout(arch, parallel),
        expert_model_parallel_size=parallel.ep,
        expert_tensor_parallel_size=parallel.etp,
        sequence_parallel=parallel.sequence_parallel and parallel.tp > 1,
        # With two stages the default exchange pairs sends wrongly and the loss is silently wrong.
        overlap_p2p_comm=parallel.vpp is not None,
        batch_p2p_comm=parallel.vpp is None,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        fp16=dtype is torch.float16,
        init_method_std=init_std,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        calculate_per_token_loss=True,
        transformer_impl="local",
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        **recompute_fields(recompute),
    )
    set_modules(config, recompute)
    return config


def stage_layout(arch: Arch, parallel: ParallelConfig) -> list[list[str]] | None:
    """What each chunk holds, by depth: megatron-core's `pipeline_model_parallel_layout`."""
    if parallel.pp == 1:
        return None
    rows = [["decoder"] * len(chunk.layers) for chunk in chunks(parallel, arch.num_layers)]
    rows[0].insert(0, "embedding")
    rows[-1] += ["mtp"] * (arch.mtp.layers if arch.mtp else 0) + ["loss"]
    return rows


def build_chunks(arch: Arch, config: TransformerConfig) -> list[Model]:
    """One model chunk, or one a virtual stage. Needs model parallel to be initialised."""
    stages = config.virtual_pipeline_model_parallel_size
    return [
        _build_chunk(arch, config, vp_stage=stage)
        for stage in ([None] if stages is None else range(stages))
    ]


def _build_chunk(arch: Arch, config: TransformerConfig, *, vp_stage: int | None) -> Model:
    is_last = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage)
    chunk = Model(
        config,
        block_spec(arch, config, vp_stage=vp_stage),  # pyright: ignore[reportArgumentType]  # or a spec
        vocab_size=padded_vocab_size(arch, config.tensor_model_parallel_size),
        real_vocab_size=arch.vocab_size,
        max_sequence_length=arch.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
        post_process=is_last,
        share_embeddings_and_output_weights=arch.tie_embeddings,
        position_embedding_type=POSITION_EMBEDDINGS[arch.position.kind],
        mtp_block_spec=prediction_spec(arch) if is_last else None,  # pyright: ignore[reportArgumentType]  # or a spec
        vp_stage=vp_stage,
    )
    if isinstance(arch.position, Rope):
        chunk.rotary_pos_emb = rotary_of(arch, arch.position)
    finish_ends(chunk, arch, config)
    return chunk


def rotary_of(arch: Arch, rope: Rope) -> Rotary:
    """The table of rotations of an architecture's heads."""
    if arch.mla is not None:
        dim = arch.mla.qk_rope_head_dim
    else:
        assert arch.attention is not None
        dim = rotary_dim(rope, arch.attention.head_dim)
    return Rotary(rope, dim=dim, max_positions=arch.max_position_embeddings)
