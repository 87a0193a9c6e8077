"""Mamba2 (transformers' `mamba2`): every layer one state-space mixer."""

from collections.abc import Mapping
from dataclasses import dataclass

from llm_ckpt.arch import Arch
from llm_ckpt.errors import ArchError
from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Facts, Field, Fixed, Ignored, Json
from llm_ckpt.params import EMBEDDING, FINAL_NORM, LAYER, OUTPUT
from llm_ckpt.rules import Rule, Same

HF = "backbone.layers.{i}."
MIXER_PARTS = (
    *(
        f"{part}.{kind}"
        for part in ("in_proj", "conv1d", "out_proj")
        for kind in ("weight", "bias")
    ),
    *("dt_bias", "A_log", "D", "norm.weight"),
)


@dataclass(frozen=True, slots=True)
class Layers:
    """`num_hidden_layers` equal layers without a feed-forward."""

    keys: tuple[str, ...] = ("num_hidden_layers",)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """One run."""
        if not isinstance(count := config.get("num_hidden_layers"), int):
            raise ArchError(f"{where}: num_hidden_layers={count!r}, want a number")
        run = {"count": count, "mixer": "mamba2", "feed_forward": "none"}
        return {"layers": [{**run, "window": None, "rope": False}]}

    def write(self, arch: Arch) -> dict[str, Json]:
        """The number of layers."""
        return {"num_hidden_layers": arch.num_layers}


@dataclass(frozen=True, slots=True)
class Expand:
    """`expand`, which repeats what the heads say: their width over the hidden size."""

    key: str = "expand"
    heads: str = "num_heads"
    head_dim: str = "head_dim"

    @property
    def keys(self) -> tuple[str, ...]:
        """The one key; those of the heads belong to other codecs."""
        return (self.key,)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """No facts; refuses a width that is not the heads'."""
        expand, hidden = config.get(self.key, 2), config.get("hidden_size", 0)
        heads, dim = config.get(self.heads, 0), config.get(self.head_dim)
        if isinstance(dim, int) and int(expand * hidden) != heads * dim:
            raise ArchError(
                f"{where}: {self.key}({expand}) * hidden_size({hidden}) = {int(expand * hidden)}, "
                f"want {self.heads}({heads}) * {self.head_dim}({dim}) = {heads * dim}"
            )
        return {}

    def write(self, arch: Arch) -> dict[str, Json]:
        """The quotient, a whole number where it is one."""
        if arch.mamba2 is None:
            return {}
        expand = arch.mamba2.heads * arch.mamba2.head_dim / arch.hidden_size
        return {self.key: int(expand) if expand.is_integer() else expand}


# Of how a new model's time steps are drawn, and of precision.
TRAINING = Ignored(
    (
        *("time_step_rank", "time_step_min", "time_step_max", "time_step_floor"),
        *("rescale_prenorm_residual", "residual_in_fp32"),
    )
)
# No limit, as transformers 5 writes it and as older releases did.
NO_LIMIT = ([0.0, {"__float__": "Infinity"}], [0.0, float("inf")], None)

ENDS: tuple[Rule, ...] = (
    Same(EMBEDDING, "backbone.embeddings.weight"),
    Same(FINAL_NORM, "backbone.norm_f.weight"),
    Same(OUTPUT, "lm_head.weight"),
)
COPIES = {"lm_head.weight": "backbone.embeddings.weight"}


def mixer(hf: str) -> tuple[Rule, ...]:
    """Rules of a mixer whose Hugging Face names begin with `hf`."""
    return tuple(Same(LAYER + f"mixer.{part}", hf + part) for part in MIXER_PARTS)


FAMILY = Family(
    name="mamba2",
    architecture="Mamba2ForCausalLM",
    fields=(
        Field("vocab_size", ("vocab_size",)),
        Field("hidden_size", ("hidden_size",)),
        Field("layer_norm_epsilon", ("norm.eps",), default=1e-5, kind=float),
        Field("tie_word_embeddings", ("tie_embeddings",), default=False),
        Layers(),
        Field("num_heads", ("mamba2.heads",)),
        Field("head_dim", ("mamba2.head_dim",)),
        Field("n_groups", ("mamba2.groups",), default=8),
        Field("state_size", ("mamba2.state_dim",), default=128),
        Field("conv_kernel", ("mamba2.conv_kernel",), default=4),
        Field("chunk_size", ("mamba2.chunk",), default=256),
        Field("use_conv_bias", ("mamba2.conv_bias",), default=True),
        Field("use_bias", ("mamba2.proj_bias",), default=False),
        Fixed("hidden_act", ("silu",)),
        Expand(),
        Fixed("time_step_limit", NO_LIMIT),
        TRAINING,
        # Of Codestral's folder; transformers always norms, and after the gate.
        Ignored(("norm_before_gate", "rms_norm")),
    ),
    constants={
        **dense.MODEL,
        # No position signal, so no limit; the number is one that no sequence reaches.
        "max_position_embeddings": 1 << 20,
        "position.kind": "none",
        "mamba2.gated_norm": True,
        **dict.fromkeys(("attention", "mla", "gdn", "mlp", "moe")),
    },
    rules=(
        *ENDS,
        Same(LAYER + "input_layernorm.weight", HF + "norm.weight"),
        *mixer(HF + "mixer."),
    ),
    copies=COPIES,
)
