"""Model families, one declarative file each."""

from llm_ckpt.errors import ArchError, suggest
from llm_ckpt.families import llama, mixtral, qwen3
from llm_ckpt.families.family import Family

FAMILIES: tuple[Family, ...] = (llama.FAMILY, mixtral.FAMILY, qwen3.FAMILY)


def family_named(name: str, *, where: str) -> Family:
    """The family of that name, or an error with the nearest one."""
    names = [family.name for family in FAMILIES]
    for family in FAMILIES:
        if family.name == name:
            return family
    raise ArchError(
        f"{where}: unknown family {name!r}{suggest(name, names)} (families: {', '.join(names)})"
    )
