"""Model families, one declarative file each."""

from llm_ckpt.errors import ArchError, suggest
from llm_ckpt.families import (
    deepseek_v2,
    deepseek_v3,
    deepseek_v32,
    glm4_moe_lite,
    glm_moe_dsa,
    llama,
    longcat_flash,
    minicpm3,
    mixtral,
    qwen3,
    youtu,
)
from llm_ckpt.families.family import Family

FAMILIES: tuple[Family, ...] = (
    deepseek_v2.FAMILY,
    deepseek_v3.FAMILY,
    deepseek_v3.KIMI_K2,
    deepseek_v32.FAMILY,
    glm4_moe_lite.FAMILY,
    glm_moe_dsa.FAMILY,
    llama.FAMILY,
    longcat_flash.FAMILY,
    minicpm3.FAMILY,
    mixtral.FAMILY,
    qwen3.FAMILY,
    youtu.FAMILY,
)


def family_named(name: str, *, where: str) -> Family:
    """The family of that name, or an error with the nearest one."""
    names = [family.name for family in FAMILIES]
    for family in FAMILIES:
        if family.name == name:
            return family
    raise ArchError(
        f"{where}: unknown family {name!r}{suggest(name, names)} (families: {', '.join(names)})"
    )
