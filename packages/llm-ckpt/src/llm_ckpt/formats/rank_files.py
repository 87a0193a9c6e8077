"""The files of a Megatron v1 iteration: their names, and their pickles opened."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from llm_ckpt.errors import FormatError, first_few
from llm_ckpt.formats.legacy import flattened, is_legacy
from llm_ckpt.formats.torch_zip import TorchZip, read_torch_zip
from llm_ckpt.formats.unpickle import Lazy
from llm_ckpt.params import EMBEDDING

RANK_FILE = "model_optim_rng.pt"
CHECKPOINT_VERSION = 3.0
_RANK = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?(?:_(\d{3,}))?")
# Of a transformer, of a MambaStack, and MindSpeed-LLM's beside prediction layers.
FINAL_NORMS = frozenset(
    {"decoder.final_layernorm.weight", "decoder.final_norm.weight", "final_layernorm.weight"}
)


@dataclass(frozen=True, slots=True)
class RankFile:
    """One rank's file, opened: its state dicts, one a virtual chunk, and its options."""

    tp: int
    pp: int
    ep: int
    zip: TorchZip
    chunks: tuple[Mapping[str, Any], ...]
    args: object

    def tensors(self, chunk: int) -> Iterator[tuple[str, Lazy]]:
        """Tensors of a chunk by their names there; low-rank factors aside."""
        for name, value in self.chunks[chunk].items():
            if isinstance(value, Lazy) and "_extra_state" not in name and ".lora_" not in name:
                # PEFT puts the weight it adapts one level down.
                yield name.removeprefix("module.").replace(".base_layer.", "."), value

    def adapters(self, chunk: int) -> Iterator[tuple[str, Lazy]]:
        """Low-rank factors of a chunk by their names there."""
        for name, value in self.chunks[chunk].items():
            if isinstance(value, Lazy) and ".lora_" in name:
                yield name.removeprefix("module."), value


def rank_path(*, tp: int, pp: int, ep: int, is_pipelined: bool, has_experts: bool) -> str:
    """Path of a rank's file below the iteration folder, as Megatron-LM names it.

    `has_experts`: the layout has more than one expert-parallel rank.
    """
    stage = f"_{pp:03d}" if is_pipelined else ""
    return f"mp_rank_{tp:02d}{stage}" + (f"_{ep:03d}" if has_experts else "") + f"/{RANK_FILE}"


def open_ranks(iteration: Path) -> tuple[RankFile, ...]:
    """Every rank's file, by pipeline, expert and tensor rank; only pickles are read."""
    named: list[tuple[tuple[int, ...], RankFile]] = []
    for folder in sorted(iteration.glob("mp_rank_*")):
        match = _RANK.fullmatch(folder.name)
        if match is None:
            raise FormatError(
                f"{folder}: want a name like mp_rank_00, mp_rank_00_000 or mp_rank_00_000_000"
            )
        if not (folder / RANK_FILE).is_file():
            raise FormatError(f"{folder / RANK_FILE}: file is missing")
        numbers = tuple(int(text) for text in match.groups() if text is not None)
        named.append((numbers, _open(folder / RANK_FILE)))
    if not named:
        raise FormatError(f"{iteration}: no mp_rank_* folders")
    if len({len(numbers) for numbers, _ in named}) > 1:
        names = first_few([rank.zip.path.parent.name for _, rank in named])
        raise FormatError(f"{iteration}: names of different kinds: {names}")
    placed = _placed(named)
    return tuple(sorted(placed, key=lambda rank: (rank.pp, rank.ep, rank.tp)))


def holds_adapters(rank: RankFile) -> bool:
    """Whether a file has low-rank factors."""
    return any(True for chunk in range(len(rank.chunks)) for _ in rank.adapters(chunk))


def _placed(named: Sequence[tuple[tuple[int, ...], RankFile]]) -> Iterable[RankFile]:
    """A single suffix is the expert rank when every file holds both ends of the model."""
    is_expert = all(_holds_both_ends(rank) for _, rank in named)
    for numbers, rank in named:
        tp, *rest = numbers
        pp, ep = rest if len(rest) == 2 else (0, *rest, 0)[:2]
        if len(rest) == 1:
            pp, ep = (0, rest[0]) if is_expert else (rest[0], 0)
        yield RankFile(tp, pp, ep, rank.zip, rank.chunks, rank.args)


def _holds_both_ends(rank: RankFile) -> bool:
    names = {name for chunk in range(len(rank.chunks)) for name, _ in rank.tensors(chunk)}
    return EMBEDDING in names and bool(names & FINAL_NORMS)


def _open(path: Path) -> RankFile:
    opened = read_torch_zip(path)
    if not isinstance(opened.value, dict):
        raise FormatError(f"{path}: holds {type(opened.value).__name__}, want a dict with 'model'")
    value = cast("dict[str, Any]", opened.value)
    version = value.get("checkpoint_version", 0)
    if version != CHECKPOINT_VERSION:
        raise FormatError(
            f"{path}: checkpoint_version {version}, want {CHECKPOINT_VERSION} "
            "(older ones order QKV rows differently)"
        )
    keys = ["model"] if "model" in value else []
    while not value.get("model") and f"model{len(keys)}" in value:
        keys.append(f"model{len(keys)}")
    if not keys:
        raise FormatError(f"{path}: no 'model' or 'model0' among {first_few(sorted(value))}")
    states = tuple(
        flattened(value[key], where=str(path)) if is_legacy(value[key]) else value[key]
        for key in keys
    )
    return RankFile(0, 0, 0, opened, states, value.get("args"))
