"""What families share whose code comes with their weights (`auto_map`), not with transformers."""

from collections.abc import Mapping
from dataclasses import dataclass

from llm_ckpt.arch import Arch, Rope
from llm_ckpt.families.fields import Codec, Facts, Ignored, Json, look_up
from llm_ckpt.families.rope import RopeFields

ROPE = RopeFields()
# Where the authors' code lies, and keys of training, files or loaders that it does not compute by.
RUNTIME = Ignored(
    (
        "auto_map",
        "_from_model_config",
        "attn_implementation",
        "bf16",
        "fp16",
        "fp32",
        "gradient_checkpointing",
        "tokenizer_class",
        "tokenizer_type",
    )
)
# Written by early versions of many of them; computed from the base, never read back.
BUFFERS = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


@dataclass(frozen=True, slots=True)
class LegacyRope:
    """What another codec reads, written as `rope_theta` and `rope_scaling`.

    Code older than transformers 5 reads that pair; a partial rotation is a key beside it.
    """

    rope: Codec = ROPE
    is_partial: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """The other codec's."""
        return self.rope.keys

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """`position` facts."""
        return self.rope.read(config, where=where)

    def write(self, arch: Arch) -> dict[str, Json]:
        """The pair; a scaling's kind under `type`."""
        if not isinstance(arch.position, Rope):
            return self.rope.write(arch)
        keys: dict[str, Json] = {"rope_theta": arch.position.base, "rope_scaling": None}
        if arch.position.scaling is not None:
            scaling = arch.position.scaling.model_dump(mode="json", exclude_none=True)
            keys["rope_scaling"] = {"type": scaling.pop("kind"), **scaling}
        if self.is_partial:
            keys["partial_rotary_factor"] = arch.position.fraction
        return keys


@dataclass(frozen=True, slots=True)
class PlainRope:
    """Rotary positions without a key of their own: a base and no scaling."""

    base: float = 10000.0
    keys: tuple[str, ...] = ()

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """The constant facts."""
        del config, where
        return rope_facts(self.base)

    def write(self, arch: Arch) -> dict[str, Json]:
        """No keys."""
        del arch
        return {}


@dataclass(frozen=True, slots=True)
class Flag:
    """A boolean key that stands for one of two values of a fact."""

    key: str
    fact: str
    on: Json
    off: Json
    default: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """The one key."""
        return (self.key,)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """The value it stands for."""
        del where
        said = config.get(self.key)
        return {self.fact: self.on if (self.default if said is None else said) else self.off}

    def write(self, arch: Arch) -> dict[str, Json]:
        """Whether the fact has the value of `on`."""
        return {self.key: look_up(arch, self.fact) == self.on}


def rope_facts(
    base: float, *, fraction: float = 1.0, interleaved: bool = False, scaling: Json = None
) -> Facts:
    """`position` facts."""
    return {
        "position.kind": "rope",
        "position.base": base,
        "position.fraction": fraction,
        "position.interleaved": interleaved,
        "position.scaling": scaling,
    }
