"""muP's multipliers as MiniCPM's config.json says them (https://arxiv.org/abs/2404.06395)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llm_ckpt.arch import Arch
from llm_ckpt.families.fields import Facts, Json
from llm_ckpt.families.latent import number


@dataclass(frozen=True, slots=True)
class Mup:
    """Embedding · scale_emb, branch · scale_depth / √layers, head input · dim_model_base / hidden.

    An absent scale_depth or dim_model_base is neutral unless the family has another default.
    """

    scale_emb: float = 1.0
    scale_depth: float | None = None
    dim_model_base: int | None = None
    keys: tuple[str, ...] = ("scale_emb", "scale_depth", "dim_model_base")

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """Three multipliers."""
        layers, hidden = (
            number(config, key, where=where) for key in ("num_hidden_layers", "hidden_size")
        )
        embedding = config.get("scale_emb")
        depth = config.get("scale_depth", self.scale_depth)
        base = config.get("dim_model_base", self.dim_model_base)
        return {
            "scalars.embedding": float(self.scale_emb if embedding is None else embedding),
            "scalars.residual": 1.0 if depth is None else depth / math.sqrt(layers),
            "scalars.logits": 1.0 if base is None else base / hidden,
        }

    def write(self, arch: Arch) -> dict[str, Json]:
        """The keys, none of them absent."""
        scalars, root, hidden = arch.scalars, math.sqrt(arch.num_layers), arch.hidden_size
        depth = _shortest(scalars.residual * root, lambda x: x / root == scalars.residual)
        base = _shortest(scalars.logits * hidden, lambda x: x / hidden == scalars.logits)
        return {
            "scale_emb": scalars.embedding,
            "scale_depth": None if scalars.residual == 1.0 else depth,
            "dim_model_base": int(base) if base.is_integer() else base,
        }


def _shortest(value: float, is_exact: Callable[[float], bool]) -> float:
    """The number of fewest digits near `value` that reads back without a rounding error."""
    rounded = (float(f"{value:.{digits}g}") for digits in range(1, 18))
    return next((number for number in rounded if is_exact(number)), value)
