"""DeepSeek-V2, V2-Lite, V2.5 and Coder-V2 (transformers' `deepseek_v2`)."""

from collections.abc import Mapping
from dataclasses import dataclass

from llm_ckpt.arch import Arch
from llm_ckpt.errors import ArchError
from llm_ckpt.families import dense, latent, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Facts, Fixed, Json, UniformLayers

_METHODS = ("greedy", "group_limited_greedy")


@dataclass(frozen=True, slots=True)
class ExpertGroups:
    """Groups of experts ranked by their best one; `greedy` ignores the groups it is given."""

    keys: tuple[str, ...] = ("topk_method", "n_group", "topk_group")

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """Both numbers, or none."""
        method = config.get("topk_method") or _METHODS[0]
        if method not in _METHODS:
            raise ArchError(
                f"{where}: topk_method={method!r} cannot be converted by this family, "
                f"want {' or '.join(_METHODS)}"
            )
        if method == _METHODS[0]:
            return {"moe.router.groups": None, "moe.router.top_groups": None}
        return {
            "moe.router.groups": latent.number(config, "n_group", where=where),
            "moe.router.top_groups": latent.number(config, "topk_group", where=where),
        }

    def write(self, arch: Arch) -> dict[str, Json]:
        """The method and its numbers."""
        router = arch.moe.router if arch.moe else None
        if router is None or router.groups is None:
            return {"topk_method": "greedy", "n_group": None, "topk_group": None}
        numbers = {"n_group": router.groups, "topk_group": router.top_groups}
        return {"topk_method": "group_limited_greedy", **numbers}


FAMILY = Family(
    name="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    fields=(
        *latent.SIZES,
        UniformLayers(),
        latent.LatentRope(),
        *latent.EXPERTS,
        moe.SharedExperts(default=2),
        moe.first_dense(),
        ExpertGroups(),
        Fixed("scoring_func", ("softmax",)),
        # Transformers ignores it; DeepSeek's own code drops the scaling when it is true.
        Fixed("norm_topk_prob", (False, None)),
    ),
    constants={
        **latent.EXPERT_CONSTANTS,
        "moe.router.pre_softmax": True,
        "moe.router.normalize": False,
    },
    rules=(*latent.RULES, *latent.EXPERT_RULES),
    copies=dense.COPIES,
)
