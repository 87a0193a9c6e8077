"""What a folder is: Hugging Face, Megatron v1 or v2, and the files that travel with it."""

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from llm_ckpt.arch import Arch, parse_arch_text
from llm_ckpt.checkpoint import parse_checkpoint_text
from llm_ckpt.errors import ArchError, CheckpointError, FormatError
from llm_ckpt.families import FAMILIES, family_named
from llm_ckpt.formats.hf import CONFIG, INDEX, SINGLE, read_json
from llm_ckpt.formats.rank_files import RANK_FILE
from llm_ckpt.formats.torch_dist import COMMON
from llm_ckpt.formats.torch_zip import read_torch_zip

TRACKER = "latest_checkpointed_iteration.txt"
ARCH = "arch.json"
CHECKPOINT = "checkpoint.json"
V2_MARK = "metadata.json"
COMPANIONS = (
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    # The authors' code, for families that transformers does not ship.
    "*.py",
    "chat_template*",
)

Layout = Literal["hf", "v1", "v2"]


@dataclass(frozen=True, slots=True)
class Located:
    """A checkpoint found on disk: `weights` is the iteration folder, or `root` itself for HF."""

    root: Path
    layout: Layout
    weights: Path
    iteration: int | None


def locate(path: Path, *, iteration: int | None = None) -> Located:
    """Say what is in a folder, or what was looked for."""
    if not path.is_dir():
        raise FormatError(f"{path}: no such folder")
    if (path / TRACKER).is_file():
        return _locate_megatron(path, iteration)
    if iteration is not None:
        raise FormatError(f"{path}: iteration {iteration} was asked for, but there is no {TRACKER}")
    has_weights = (path / SINGLE).is_file() or (path / INDEX).is_file()
    if has_weights and (path / CONFIG).is_file():
        return Located(path, "hf", path, None)
    raise FormatError(
        f"{path}: not a checkpoint; want {TRACKER} (Megatron), "
        f"or {CONFIG} with {SINGLE} or {INDEX} (Hugging Face)"
    )


def iteration_name(iteration: int) -> str:
    """Folder name of an iteration."""
    return f"iter_{iteration:07d}"


def read_arch(located: Located, given: Path | None = None) -> Arch:
    """The architecture: `given`, or arch.json, or config.json of the folder."""
    if given is not None:
        return arch_from_file(given)
    if located.layout == "hf":
        return arch_from_file(located.root / CONFIG)
    for folder in (located.weights, located.root):
        for name in (ARCH, CONFIG):
            if (folder / name).is_file():
                return arch_from_file(folder / name)
    raise ArchError(f"{located.root}: neither {ARCH} nor {CONFIG} beside the weights; give --arch")


def arch_from_file(path: Path) -> Arch:
    """The architecture in an arch.json or a config.json."""
    if not path.is_file():
        raise ArchError(f"{path}: no such file")
    document = read_json(path)
    if document.get("format") == "arch":
        return parse_arch_text(path.read_text(encoding="utf-8"), where=str(path))
    kind = document.get("model_type") or _kind_of(document.get("architectures"))
    if not isinstance(kind, str):
        names = ", ".join(family.name for family in FAMILIES)
        raise ArchError(f'{path}: neither "format": "arch" nor a "model_type" (families: {names})')
    return family_named(kind, where=str(path)).read_config(document, where=str(path))


def samples_consumed(located: Located) -> int:
    """Samples drawn from the training data: checkpoint.json says so, or the `args` of Megatron."""
    if located.layout == "hf":
        return 0
    path = located.weights / CHECKPOINT
    if path.is_file():
        return parse_checkpoint_text(
            path.read_text(encoding="utf-8"), where=str(path)
        ).consumed_samples
    files = [located.weights / COMMON, *sorted(located.weights.glob(f"mp_rank_*/{RANK_FILE}"))]
    found = next((file for file in files if file.is_file()), None)
    value = read_torch_zip(found).value if found else {}
    args = value.get("args") if isinstance(value, dict) else None
    count = getattr(args, "consumed_train_samples", 0)
    return count if isinstance(count, int) else 0


def refuse_adapter_alone(located: Located) -> None:
    """Raise CheckpointError for an iteration that holds adapters and not the weights they adapt."""
    path = located.weights / CHECKPOINT
    if located.layout == "hf" or not path.is_file():
        return
    contains = parse_checkpoint_text(path.read_text(encoding="utf-8"), where=str(path)).contains
    if "weights" not in contains:
        raise CheckpointError(
            f"{path}: contains {', '.join(contains)}, want weights; merge the PEFT folder beside "
            f"it: llm-ckpt merge-lora BASE {located.root}/adapter_NNNNNNN"
        )


def _kind_of(architectures: object) -> str | None:
    """The family of the model class, for the config.json files that have no model_type."""
    names = [family.name for family in FAMILIES if [family.architecture] == architectures]
    return names[0] if len(names) == 1 else None


def companions(root: Path) -> list[Path]:
    """Configuration and tokenizer files of a folder."""
    return sorted(
        path
        for path in root.iterdir()
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in COMPANIONS)
    )


def _locate_megatron(root: Path, iteration: int | None) -> Located:
    text = (root / TRACKER).read_text(encoding="utf-8").strip()
    if iteration is None and text == "release":
        weights, number = root / "release", None
    elif iteration is None and not text.isdigit():
        raise FormatError(f"{root / TRACKER}: found {text!r}, want a number or 'release'")
    else:
        number = int(text) if iteration is None else iteration
        weights = root / iteration_name(number)
    if not weights.is_dir():
        found = ", ".join(sorted(p.name for p in root.glob("iter_*"))) or "none"
        raise FormatError(f"{weights}: no such folder (iterations here: {found})")
    layout: Layout = "v2" if (weights / V2_MARK).is_file() else "v1"
    return Located(root, layout, weights, number)
