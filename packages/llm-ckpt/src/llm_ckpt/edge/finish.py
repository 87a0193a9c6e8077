"""The files beside the weights: indexes, arch.json, checkpoint.json, companions, tracker."""

import json
import shutil
from argparse import Namespace
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import torch

from llm_ckpt import __version__
from llm_ckpt.arch import differences
from llm_ckpt.checkpoint import Checkpoint, FileEntry, Parallel, tokenizer_digest
from llm_ckpt.edge.folder import ARCH, CHECKPOINT, TRACKER, arch_from_file
from llm_ckpt.errors import ArchError
from llm_ckpt.execute import Job, Written, carried_state, rank_args
from llm_ckpt.families import family_named
from llm_ckpt.families.family import QUANTIZATION
from llm_ckpt.formats.dist_keys import extra_state_keys
from llm_ckpt.formats.dist_metadata import (
    METADATA,
    Chunk,
    DistMetadata,
    StoredKey,
    metadata_bytes,
)
from llm_ckpt.formats.hf import CONFIG, INDEX, index_bytes, read_json
from llm_ckpt.formats.optimizer_state import (
    CONTENT_SHARDING,
    FULLY_RESHARDABLE,
)
from llm_ckpt.formats.stream import FileFact, NewFile, hash_file, write_file
from llm_ckpt.formats.torch_dist import BACKEND, COMMON, MARK
from llm_ckpt.formats.torch_zip import TorchZipWriter
from llm_ckpt.params import expected_params
from llm_ckpt.plan import DistFile, HfFile, Plan, Target
from llm_ckpt.source import WeightSource

_EXTRA_FILE = "__0_extra.distcp"


def complete(
    source: WeightSource,
    plan: Plan,
    job: Job,
    written: list[Written],
    root: Path,
    files: Mapping[str, bytes] | None,
) -> None:
    """Everything but the weights; what makes the folder readable comes last."""
    given = dict(files or {})
    for path in source.companions():
        if path.name != CONFIG and path.name not in given:
            shutil.copyfile(path, root / path.name)
    for name, data in given.items():
        write_file(root / name, data)
    if plan.target.layout == "hf":
        _complete_hf(source, plan, root, has_config=CONFIG in given)
    else:
        _complete_megatron(source, plan, job, written, root)


def config_document(source: WeightSource, dtype: torch.dtype) -> dict[str, Any]:
    """The config.json of the weights: the companion when it agrees, else made by the family."""
    arch, name = source.architecture, str(dtype).removeprefix("torch.")
    companion = _companion_config(source)
    if companion is None:
        family = family_named(arch.family, where=str(source.located.root))
        return family.write_config(arch, dtype=name)
    # What is written is neither quantised nor of the dtype that the source named.
    left_out = ("torch_dtype", QUANTIZATION)
    config = {key: value for key, value in companion.items() if key not in left_out}
    return config | {"dtype": name}


def _companion_config(source: WeightSource) -> dict[str, Any] | None:
    path = source.located.root / CONFIG
    if not path.is_file():
        return None
    try:
        found = arch_from_file(path)
    except ArchError:
        return None  # a config.json this version cannot read says nothing about these weights
    arch = source.architecture
    lost = differences(found, arch)
    if found.family != arch.family or lost not in ([], ["mtp"]):
        return None
    config = read_json(path)
    family = family_named(arch.family, where=str(path))
    return family.amend_config(config, arch) if lost else config


def _complete_hf(source: WeightSource, plan: Plan, root: Path, *, has_config: bool) -> None:
    files = [file for file in plan.files if isinstance(file, HfFile)]
    if len(files) > 1:
        weight_map = {t.name: f.path for f in files for t in f.tensors}
        write_file(root / INDEX, index_bytes(weight_map, plan.total_bytes))
    if not has_config:
        dtype = plan.target.dtype or source.dtype(source.names()[0])
        write_file(root / CONFIG, _json(config_document(source, dtype)))


def _complete_megatron(
    source: WeightSource, plan: Plan, job: Job, written: list[Written], root: Path
) -> None:
    companion = source.located.root / CONFIG
    if companion.is_file():
        shutil.copyfile(companion, root / CONFIG)
    tokenizer = root / "tokenizer.json"
    facts = {item.path: item.fact for item in written}
    if plan.target.layout == "v2":
        facts |= _complete_v2(source, plan, job, written)
    target, arch = plan.target, source.architecture
    pipeline, grid = target.pipeline, target.grid
    checkpoint = Checkpoint(
        format="checkpoint",
        version=1,
        layout="v1" if target.layout == "v1" else "v2",
        iteration=job.iteration,
        consumed_samples=source.consumed_samples,
        arch_digest=arch.digest(),
        tokenizer_digest=tokenizer_digest(read_json(tokenizer)) if tokenizer.is_file() else None,
        parallel=Parallel(
            tp=grid.tp,
            pp=pipeline.pp,
            vpp=pipeline.vpp if pipeline.vpp > 1 else None,
            ep=grid.ep,
            etp=grid.expert_tensor if arch.moe else 1,
            dp=1,
        ),
        contains=_contents(source, target),
        files={
            path: FileEntry(bytes=fact.bytes, sha256=fact.sha256)
            for path, fact in sorted(facts.items())
        },
        created_by=f"llm-ckpt {__version__}",
    )
    write_file(job.folder / CHECKPOINT, checkpoint.dumps().encode())
    write_file(root / ARCH, arch.dumps().encode())
    write_file(root / TRACKER, f"{job.iteration}\n".encode())


def _complete_v2(
    source: WeightSource, plan: Plan, job: Job, written: list[Written]
) -> dict[str, FileFact]:
    chunks: dict[str, list[Chunk]] = {}
    for item in written:
        for key, chunk in item.chunks:
            chunks.setdefault(key, []).append(chunk)
    tensors: dict[str, StoredKey] = {}
    for file in plan.files:
        for tensor in file.tensors if isinstance(file, DistFile) else ():
            tensors[tensor.key] = StoredKey(tensor.dtype, tensor.shape, tuple(chunks[tensor.key]))
    facts = dict[str, FileFact]()
    objects, facts[_EXTRA_FILE] = _write_extra_state(source, plan, job)
    facts[COMMON] = _write_common(source, plan, job)
    metadata = metadata_bytes(DistMetadata(tensors, objects))
    facts[METADATA] = write_file(job.folder / METADATA, metadata)
    write_file(job.folder / MARK, json.dumps(BACKEND).encode())
    return facts | {MARK: hash_file(job.folder / MARK)}


def _write_extra_state(
    source: WeightSource, plan: Plan, job: Job
) -> tuple[dict[str, tuple[str, int, int]], FileFact]:
    arch = source.architecture
    keys = extra_state_keys(expected_params(arch), arch, is_per_layer=plan.target.is_per_layer)
    state = carried_state(source, plan.target)
    spans: dict[str, tuple[str, int, int]] = {}
    with NewFile(job.folder / _EXTRA_FILE) as stream:
        for key in keys:
            start = stream.position
            TorchZipWriter(stream).finish([None])
            spans[key] = (_EXTRA_FILE, start, stream.position - start)
        for key, (path, offset, length) in (state.objects if state else {}).items():
            start = stream.position
            with path.open("rb") as file:
                file.seek(offset)
                stream.write(file.read(length))
            spans[key] = (_EXTRA_FILE, start, length)
        return spans, stream.commit()


def _contents(
    source: WeightSource, target: Target
) -> list[Literal["weights", "adapter", "optimizer", "rng"]]:
    state = carried_state(source, target)
    if state is None:
        return ["weights"]
    has_rng = state.has_rng and target.layout == "v2"
    return ["weights", "optimizer", "rng"] if has_rng else ["weights", "optimizer"]


def _write_common(source: WeightSource, plan: Plan, job: Job) -> FileFact:
    buffer = BytesIO()
    state = carried_state(source, plan.target)
    forms = {CONTENT_SHARDING: FULLY_RESHARDABLE, "chained_optim_avoid_prefix": True}
    torch.save(
        {
            **(state.common if state else {}),
            "args": Namespace(**rank_args(source, job)),
            "iteration": job.iteration,
            "checkpoint_version": 3.0,
            "content_metadata": {
                "singleton_local_shards": False,
                "non_homogeneous_layers": plan.target.is_per_layer,
                **(forms if state else {}),
            },
        },
        buffer,
    )
    return write_file(job.folder / COMMON, buffer.getvalue())


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
