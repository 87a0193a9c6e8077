"""Nemotron-H and Nemotron-3 (transformers' `nemotron_h`): layers of one block each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from llm_ckpt.arch import Arch
from llm_ckpt.errors import ArchError
from llm_ckpt.families import dense, mamba2, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Facts, Field, Fixed, Ignored, Json
from llm_ckpt.params import EXPERT, LAYER
from llm_ckpt.rules import Qkv, Rule, Same

HF = mamba2.HF
# Kind of a block: its name, older names, mixer, feed-forward.
_BLOCKS = (
    ("linear_attention", ("mamba", "M"), "mamba2", "none"),
    ("full_attention", ("attention", "*"), "attention", "none"),
    ("mlp", ("-",), "none", "dense"),
    ("moe", ("E",), "none", "moe"),
)


@dataclass(frozen=True, slots=True)
class Blocks:
    """`layers_block_type`, or `hybrid_override_pattern`, its older form of one letter a layer."""

    keys: tuple[str, ...] = ("layers_block_type", "hybrid_override_pattern", "num_hidden_layers")

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """One run a layer, without a position signal."""
        kinds = config.get("layers_block_type") or config.get("hybrid_override_pattern")
        if not isinstance(kinds, list | str) or not kinds:
            raise ArchError(f"{where}: missing key layers_block_type")
        known = {word: block for block in _BLOCKS for word in (block[0], *block[1])}
        runs: list[Json] = []
        for kind in cast("list[str]", kinds):
            if kind not in known:
                raise ArchError(f"{where}: block {kind!r}, want one of {', '.join(known)}")
            run = dict(zip(("mixer", "feed_forward"), known[kind][2:], strict=True))
            runs.append({"count": 1, **run, "window": None, "rope": False})
        return {"layers": runs}

    def write(self, arch: Arch) -> dict[str, Json]:
        """The names."""
        names = {(mixer, feed): name for name, _, mixer, feed in _BLOCKS}
        kinds = [(run.mixer, run.feed_forward) for run in arch.each_layer()]
        return {"layers_block_type": [names.get(kind, "+".join(kind)) for kind in kinds]}


def _feed_forward(at: str, hf: str, *kinds: str) -> tuple[Rule, ...]:
    """Weights (and biases) of an ungated feed-forward; `at` and `hf` are relative to the layer."""
    return tuple(
        Same(f"{LAYER}{at}{ours}.{kind}", f"{HF}mixer.{hf}{theirs}.{kind}")
        for ours, theirs in (("linear_fc1", "up_proj"), ("linear_fc2", "down_proj"))
        for kind in kinds
    )


FAMILY = Family(
    name="nemotron_h",
    architecture="NemotronHForCausalLM",
    fields=(
        Field("vocab_size", ("vocab_size",)),
        Field("hidden_size", ("hidden_size",)),
        Field("max_position_embeddings", ("max_position_embeddings",), default=4096),
        Field("layer_norm_epsilon", ("norm.eps",), default=1e-5, kind=float),
        # transformers ties nothing here, whatever the key says.
        Fixed("tie_word_embeddings", (False,)),
        Blocks(),
        Field("num_attention_heads", ("attention.heads",), default=32),
        Field("num_key_value_heads", ("attention.query_groups",), default=8, null=dense.all_heads),
        Field("head_dim", ("attention.head_dim",), default=128),
        Fixed("attention_bias", (False,)),
        Fixed("sliding_window", (None,)),
        Field("intermediate_size", ("mlp.ffn_hidden_size",), default=21504),
        Field("mlp_hidden_act", ("mlp.activation", "moe.activation"), default="relu2"),
        Field("mlp_bias", ("mlp.bias",), default=False),
        Field("mamba_num_heads", ("mamba2.heads",), default=128),
        Field("mamba_head_dim", ("mamba2.head_dim",), default=64),
        Field("n_groups", ("mamba2.groups",), default=8),
        Field("ssm_state_size", ("mamba2.state_dim",), default=128),
        Field("conv_kernel", ("mamba2.conv_kernel",), default=4),
        Field("chunk_size", ("mamba2.chunk",), default=128),
        Field("use_conv_bias", ("mamba2.conv_bias",), default=True),
        Field("use_bias", ("mamba2.proj_bias",), default=False),
        Fixed("mamba_hidden_act", ("silu",)),
        Fixed("mamba_proj_bias", (False,)),
        Field("n_routed_experts", ("moe.experts",), default=8),
        Field("num_experts_per_tok", ("moe.top_k",), default=2),
        Field("moe_intermediate_size", ("moe.ffn_hidden_size",), default=7688),
        Field(
            "moe_shared_expert_intermediate_size",
            ("moe.shared.ffn_hidden_size",),
            default=7688,
        ),
        *moe.SIGMOID_FIELDS,
        Fixed("n_shared_experts", (1,)),
        Fixed("moe_latent_size", (None,)),
        Fixed("num_nextn_predict_layers", (0, None)),
        moe.TRAINING,
        # transformers keeps time steps above time_step_min (0.001); megatron-core and the authors'
        # own code do not, and arch.json does not say it.
        mamba2.TRAINING,
        Fixed("time_step_limit", mamba2.NO_LIMIT),
        Ignored(
            (
                *("attention_head_dim", "expand", "hidden_dropout", "mamba_ssm_cache_dtype"),
                *("moe_shared_expert_overlap", "mtp_layers_block_type", "norm_eps"),
                *("num_logits_to_keep", "rms_norm_eps", "use_mamba_kernels"),
                # Of released folders, though no position is rotated.
                *("partial_rotary_factor", "rope_theta"),
            )
        ),
    ),
    constants={
        **dense.CONSTANTS,
        **{key: fact for key, fact in moe.FACTS.items() if key != "layers.feed_forward"},
        **moe.SIGMOID,
        "position.kind": "none",
        "tie_embeddings": False,
        "mlp.gated": False,
        "moe.gated": False,
        "moe.shared.gated": False,
        "mamba2.gated_norm": True,
    },
    rules=(
        *mamba2.ENDS,
        # A layer has one block, so one of the two.
        Same(LAYER + "input_layernorm.weight", HF + "norm.weight"),
        Same(LAYER + "pre_mlp_layernorm.weight", HF + "norm.weight"),
        *mamba2.mixer(HF + "mixer."),
        Qkv(
            LAYER + "self_attention.linear_qkv.weight",
            q=HF + "mixer.q_proj.weight",
            k=HF + "mixer.k_proj.weight",
            v=HF + "mixer.v_proj.weight",
        ),
        Same(LAYER + "self_attention.linear_proj.weight", HF + "mixer.o_proj.weight"),
        *_feed_forward("mlp.", "", "weight", "bias"),
        Same(LAYER + "mlp.router.weight", HF + "mixer.gate.weight"),
        Same(LAYER + "mlp.router.expert_bias", HF + "mixer.gate.e_score_correction_bias"),
        *_feed_forward(EXPERT, "experts.{e}.", "weight"),
        *_feed_forward("mlp.shared_experts.", "shared_experts.", "weight"),
    ),
    copies={},
)
