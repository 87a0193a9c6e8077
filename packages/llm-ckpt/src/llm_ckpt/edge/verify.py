"""Comparing two checkpoints tensor by tensor, and one with its recorded checksums."""

from collections.abc import Iterator
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from llm_ckpt.arch import differences
from llm_ckpt.checkpoint import FileEntry, parse_checkpoint_text
from llm_ckpt.edge.folder import CHECKPOINT
from llm_ckpt.edge.progress import byte_progress
from llm_ckpt.formats.stream import hash_file
from llm_ckpt.source import WeightSource


def compare(left: WeightSource, right: WeightSource) -> Iterator[str]:
    """One line for each difference; nothing when every bit is equal.

    Optimizer state is compared when both have it.
    """
    for key in differences(left.architecture, right.architecture):
        yield f"arch: {key} differs"
    names, others = names_compared(left, right)
    for name in sorted(set(names) ^ set(others)):
        yield f"{name}: only in {left.located.root if name in names else right.located.root}"
    known = set(others)
    common = [name for name in names if name in known]
    sizes = {name: prod(left.shape(name)) * left.dtype(name).itemsize for name in common}
    with byte_progress("comparing", sum(sizes.values())) as advance:
        for name, size in sizes.items():
            if reason := _difference(left.read(name), right.read(name)):
                yield f"{name}: {reason}"
            advance(size)


def names_compared(left: WeightSource, right: WeightSource) -> tuple[list[str], list[str]]:
    """Names of each: parameters, and optimizer state when both have it."""
    names, others = left.names(), right.names()
    if left is right or left.optimizer is None or right.optimizer is None:
        return names, others
    return names + left.optimizer.names(), others + right.optimizer.names()


def check_files(source: WeightSource) -> Iterator[str]:
    """One line for each file that differs from the checksums in its checkpoint.json, if any."""
    folder = source.located.weights
    path = folder / CHECKPOINT
    if source.located.layout == "hf" or not path.is_file():
        return
    recorded = parse_checkpoint_text(path.read_text(encoding="utf-8"), where=str(path))
    if (found := source.architecture.digest()) != recorded.arch_digest:
        yield f"{path}: arch_digest {recorded.arch_digest[:12]}…, arch.json has {found[:12]}…"
    with byte_progress("checking files", sum(e.bytes for e in recorded.files.values())) as advance:
        for name, entry in recorded.files.items():
            yield from _file_difference(folder / name, entry)
            advance(entry.bytes)


def _file_difference(file: Path, entry: FileEntry) -> Iterator[str]:
    if not file.is_file():
        yield f"{file}: file is missing"
    elif (size := file.stat().st_size) != entry.bytes:
        yield f"{file}: {size} bytes, want {entry.bytes}"
    elif (found := hash_file(file).sha256) != entry.sha256:
        yield f"{file}: sha256 {found[:12]}…, want {entry.sha256[:12]}…"


def _difference(a: Tensor, b: Tensor) -> str | None:
    if a.shape != b.shape:
        return f"shape {list(a.shape)} against {list(b.shape)}"
    if a.dtype != b.dtype:
        return f"dtype {a.dtype} against {b.dtype}"
    if torch.equal(a.view(torch.uint8), b.view(torch.uint8)):
        return None
    if bool((a == b).all()):
        bits = (_bits(a) != _bits(b)).sum()
        return f"{int(bits)} of {a.numel()} values differ in their bits (signs of zero)"
    gap = (a.double() - b.double()).abs()
    return f"{int((a != b).sum())} of {a.numel()} values differ, at most by {gap.max():.3g}"


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(
        {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize]
    )
