"""What mixture-of-experts families share: neutral facts, config.json codecs, rules by naming."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from llm_ckpt.arch import Arch
from llm_ckpt.errors import ArchError
from llm_ckpt.families import dense
from llm_ckpt.families.fields import REQUIRED, Codec, Default, Facts, Field, Fixed, Ignored, Json
from llm_ckpt.families.layers import check_length
from llm_ckpt.params import EXPERT, LAYER
from llm_ckpt.rules import Glu, Rule, Same

# Facts of a plain router and plain experts, to be overridden one by one, in every layer unless a
# codec of layers is among a family's fields.
FACTS: Mapping[str, Json] = {
    "layers.feed_forward": "moe",
    "moe.gated": True,
    "moe.bias": False,
    "moe.clamp": None,
    "moe.glu_offset": 0.0,
    "moe.shared": None,
    "moe.router.score": "softmax",
    "moe.router.pre_softmax": False,
    "moe.router.normalize": True,
    "moe.router.scaling": 1.0,
    "moe.router.bias": False,
    "moe.router.groups": None,
    "moe.router.top_groups": None,
    "moe.router.group_score": "max",
    "moe.router.linear_bias": False,
    "moe.router.zero_experts": 0,
}
CONSTANTS: Mapping[str, Json] = {**dense.CONSTANTS, **FACTS}


# Added to FACTS: sigmoid scores and a correction bias; a group ranks by its best two scores.
SIGMOID: Mapping[str, Json] = {
    "moe.router.score": "sigmoid",
    "moe.router.bias": True,
    "moe.router.group_score": "top2",
}

# Of losses and noise in training.
TRAINING = Ignored(
    (
        "output_router_logits",
        "router_aux_loss_coef",
        "aux_loss_alpha",
        "seq_aux",
        "router_jitter_noise",
    )
)


def sizes(
    *changed: Codec,
    eps: float = 1e-6,
    top_k: Default = REQUIRED,
    without: tuple[str, ...] = (),
) -> tuple[Codec, ...]:
    """As dense.sizes, without widths of feed-forwards; `eps`, `top_k`: what absent keys mean."""
    codecs = (
        *dense.sizes(without=("intermediate_size", "hidden_act", "rms_norm_eps", *without)),
        Field("rms_norm_eps", ("norm.eps",), default=eps, kind=float),
        Field(
            "hidden_act",
            ("moe.activation", "mlp.activation"),
            default="silu",
            choices=dense.ACTIVATIONS,
        ),
        Field("num_experts_per_tok", ("moe.top_k",), default=top_k),
        dense.kv_heads(),
        TRAINING,
    )
    gone = {key for codec in changed for key in codec.keys} | set(without)
    return (*(codec for codec in codecs if not gone & set(codec.keys)), *changed)


SIZES = sizes()
DENSE_WIDTH = Field("intermediate_size", ("mlp.ffn_hidden_size",), default=None)
EXPERT_WIDTH = Field("moe_intermediate_size", ("moe.ffn_hidden_size",))


@dataclass(frozen=True, slots=True)
class SoftmaxWeights:
    """Whether softmax weights of the chosen experts are made to sum to 1.

    Softmax over all, choice and division are the same as choice and softmax over the chosen, which
    is how arch.json says it (megatron-core knows only that form).
    """

    key: str = "norm_topk_prob"
    default: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """The one key."""
        return (self.key,)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """Normalised: softmax after the choice."""
        del where
        is_normalized = config.get(self.key)
        is_normalized = self.default if is_normalized is None else is_normalized
        return {
            "moe.router.normalize": is_normalized,
            "moe.router.pre_softmax": not is_normalized,
        }

    def write(self, arch: Arch) -> dict[str, Json]:
        """The key."""
        return {self.key: arch.moe.router.normalize} if arch.moe else {}


@dataclass(frozen=True, slots=True)
class Groups:
    """Experts in groups of which some are chosen first; one group is none."""

    groups: str = "n_group"
    top_groups: str = "topk_group"

    @property
    def keys(self) -> tuple[str, ...]:
        """Both keys."""
        return (self.groups, self.top_groups)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """Both numbers, or null."""
        del where
        groups = config.get(self.groups) or 1
        return {
            "moe.router.groups": None if groups == 1 else groups,
            "moe.router.top_groups": None if groups == 1 else config.get(self.top_groups) or 1,
        }

    def write(self, arch: Arch) -> dict[str, Json]:
        """Both numbers, 1 for none."""
        if arch.moe is None:
            return {}
        router = arch.moe.router
        return {self.groups: router.groups or 1, self.top_groups: router.top_groups or 1}


def sigmoid_fields(*, normalize: bool = True, scaling: float = 1.0) -> tuple[Codec, ...]:
    """Keys of the router that go with SIGMOID, and what absent ones mean."""
    return (
        Field("norm_topk_prob", ("moe.router.normalize",), default=normalize),
        Field("routed_scaling_factor", ("moe.router.scaling",), default=scaling, kind=float),
        Groups(),
        # dots.llm1 has the name of the method in the place of the function's.
        Fixed("scoring_func", ("sigmoid", "noaux_tc")),
        Fixed("topk_method", ("noaux_tc",)),
    )


SIGMOID_FIELDS = sigmoid_fields()


@dataclass(frozen=True, slots=True)
class SharedExperts:
    """A number of shared experts as wide as the routed ones, kept as one feed-forward."""

    key: str = "n_shared_experts"
    size_key: str = "moe_intermediate_size"
    default: int | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The number's key; the size's belongs to another codec."""
        return (self.key,)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """One shared feed-forward, or none."""
        count = config.get(self.key, self.default) or 0
        if count == 0:
            return {"moe.shared": None}
        size = config.get(self.size_key)
        if not isinstance(size, int):
            raise ArchError(f"{where}: {self.key}={count} needs a number in {self.size_key}")
        return {"moe.shared.ffn_hidden_size": count * size, "moe.shared.gated": False}

    def write(self, arch: Arch) -> dict[str, Json]:
        """The number of experts."""
        if arch.moe is None:
            return {}
        shared = arch.moe.shared
        return {self.key: shared.ffn_hidden_size // arch.moe.ffn_hidden_size if shared else 0}


@dataclass(frozen=True, slots=True)
class ExpertLayers:
    """Which layers have experts.

    `read_layers` says so for a config.json, one entry a layer, `write_layers` gives the keys back.
    """

    keys: tuple[str, ...]
    read_layers: Callable[[Mapping[str, Json], int], list[bool]]
    write_layers: Callable[[list[bool]], dict[str, Json]]

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """The feed-forward of each layer."""
        count = config.get("num_hidden_layers")
        if not isinstance(count, int):
            raise ArchError(f"{where}: missing key num_hidden_layers")
        has_experts = self.read_layers(config, count)
        check_length(has_experts, count, key=self.keys[0], where=where)
        return {"layers.feed_forward": ["moe" if has else "dense" for has in has_experts]}

    def write(self, arch: Arch) -> dict[str, Json]:
        """The keys."""
        return self.write_layers([run.feed_forward != "dense" for run in arch.each_layer()])


def first_dense(*, default: int = 0) -> ExpertLayers:
    """`first_k_dense_replace` dense layers, then experts; older configs add a frequency of 1."""

    def read(config: Mapping[str, Json], count: int) -> list[bool]:
        first = config.get("first_k_dense_replace")
        return [layer >= (default if first is None else first) for layer in range(count)]

    return ExpertLayers(
        ("first_k_dense_replace",),
        read,
        lambda has_experts: {"first_k_dense_replace": _leading_dense(has_experts)},
    )


def layer_types(*, default_dense: int = 0) -> ExpertLayers:
    """`mlp_layer_types` of `dense` and `sparse`, or `first_k_dense_replace` in older configs."""

    def read(config: Mapping[str, Json], count: int) -> list[bool]:
        kinds = cast("list[str] | None", config.get("mlp_layer_types"))
        if kinds is not None:
            return [kind == "sparse" for kind in kinds]
        first = config.get("first_k_dense_replace")
        return [layer >= (default_dense if first is None else first) for layer in range(count)]

    return ExpertLayers(
        ("mlp_layer_types", "first_k_dense_replace"),
        read,
        lambda has_experts: {
            "mlp_layer_types": ["sparse" if has else "dense" for has in has_experts],
            "first_k_dense_replace": _leading_dense(has_experts),
        },
    )


def _sparse_step(config: Mapping[str, Json], count: int) -> list[bool]:
    dense_layers = cast("list[int]", config.get("mlp_only_layers") or [])
    step = config.get("decoder_sparse_step") or 1
    return [layer not in dense_layers and (layer + 1) % step == 0 for layer in range(count)]


# Qwen's pair: experts on every n-th layer that is not listed.
SPARSE_STEP = ExpertLayers(
    ("mlp_only_layers", "decoder_sparse_step"),
    _sparse_step,
    lambda has_experts: {
        "mlp_only_layers": [layer for layer, has in enumerate(has_experts) if not has],
        "decoder_sparse_step": 1,
    },
)


# DeepSeek's and Bailing's frequency; another one than 1 is not in use.
LAYER_FREQUENCY = Fixed("moe_layer_freq", (1,))


def _leading_dense(has_experts: list[bool]) -> int:
    return has_experts.index(True) if True in has_experts else len(has_experts)


@dataclass(frozen=True, slots=True)
class PredictionLayers:
    """Number of multi-token-prediction layers, 0 for none, under the newest and older names."""

    keys: tuple[str, ...] = ("num_nextn_predict_layers", "num_mtp_layers")
    default: int = 0

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """The number, or no prediction layers."""
        said = {key: config[key] for key in self.keys if config.get(key) is not None}
        if len(set(said.values())) > 1:
            raise ArchError(f"{where}: {said} disagree, want one number")
        count = next(iter(said.values()), self.default)
        return {"mtp": {"layers": count} if count else None}

    def write(self, arch: Arch) -> dict[str, Json]:
        """The first key."""
        return {self.keys[0]: arch.mtp.layers if arch.mtp else 0}


def without(rules: tuple[Rule, ...], *endings: str) -> tuple[Rule, ...]:
    """The rules whose parameter's name ends in none of `endings`."""
    return tuple(rule for rule in rules if not rule.mcore.endswith(endings))


# Llama's rules without its dense feed-forward and without biases.
TRUNK: tuple[Rule, ...] = (*dense.ENDS, *dense.NORMS, *dense.ATTENTION_WEIGHTS)


def feed_forward_rules(at: str, hf: str, *, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """A gated feed-forward without biases; `at` and `hf` are relative to the layer."""
    return (
        Glu(
            f"{LAYER}{at}linear_fc1.weight",
            gate=f"{dense.HF}{hf}{gate}.weight",
            up=f"{dense.HF}{hf}{up}.weight",
        ),
        Same(f"{LAYER}{at}linear_fc2.weight", f"{dense.HF}{hf}{down}.weight"),
    )


def expert_rules(
    hf: str = "mlp.experts.{e}.",
    *,
    gate: str = "gate_proj",
    up: str = "up_proj",
    down: str = "down_proj",
) -> tuple[Rule, ...]:
    """Routed experts, one tensor each."""
    return feed_forward_rules(EXPERT, hf, gate=gate, up=up, down=down)


def shared_rules(hf: str = "mlp.shared_experts.") -> tuple[Rule, ...]:
    """The shared feed-forward."""
    return feed_forward_rules(
        "mlp.shared_experts.", hf, gate="gate_proj", up="up_proj", down="down_proj"
    )


def router_rules(hf: str = "mlp.gate.weight", *, bias: str | None = None) -> tuple[Rule, ...]:
    """The router's linear, and where it has one the correction bias."""
    weight = Same(LAYER + "mlp.router.weight", dense.HF + hf)
    return (weight,) if bias is None else (weight, *correction_rules(bias))


def correction_rules(hf: str = "mlp.gate.e_score_correction_bias") -> tuple[Rule, ...]:
    """The bias used for choosing only."""
    return (Same(LAYER + "mlp.router.expert_bias", dense.HF + hf),)
