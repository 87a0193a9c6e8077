"""The manifest of a run, whichever kind of dataset it writes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from llm_data.config import RunIdentity, Task
from llm_data.edge.datasets.spool import SpoolMark
from llm_data.edge.runs.run_folder import RunState
from llm_data.formats.manifest import Manifest, pack_manifest, unpack_manifest
from llm_data.formats.manifest_parts import FileEntry
from llm_data.formats.sample_manifest import (
    SampleManifest,
    pack_sample_manifest,
    unpack_sample_manifest,
)

DatasetManifest = Manifest | SampleManifest
OptionValue = str | int | bool | None
Options = Mapping[str, OptionValue]

# What encoders count for the manifest alone.
LOSS_TOKENS = "loss_tokens"


def identity_of(manifest: DatasetManifest) -> RunIdentity:
    """The identity of the run that writes, or wrote, a manifest."""
    options: dict[str, str | int | bool | None] = {"on-error": manifest.on_error}
    if isinstance(manifest, Manifest):
        options |= {
            "task": Task.PRETRAIN.value,
            "key": manifest.key,
            "level": manifest.level,
            "dtype": manifest.dtype,
            "eod id": manifest.eod_id,
        }
    else:
        template = manifest.template
        options |= {
            "task": manifest.task,
            "columns": ", ".join(f"{each.name} {each.dtype}" for each in manifest.columns),
            "seq-length": manifest.seq_length,
            "pack": manifest.packed,
            "pad id": manifest.pad_id,
            "template": f"{template.name} {template.digest[:12]}" if template else None,
        }
    options |= {name.replace("_", "-"): value for name, value in manifest.options.items()}
    return RunIdentity(
        inputs=tuple(source.digest for source in manifest.sources),
        tokenizer=manifest.tokenizer.digest,
        options=options,
    )


def completed(
    draft: DatasetManifest, state: RunState, files: Mapping[str, FileEntry]
) -> DatasetManifest:
    """The draft with what the run counted."""
    if isinstance(draft, Manifest):
        (mark,) = state.marks.values()
        return replace(
            draft,
            num_documents=mark.num_documents,
            num_sequences=mark.num_sequences,
            num_tokens=mark.num_tokens,
            drops=state.drops,
            files=files,
        )
    rows = state.packed.marks if draft.packed else state.marks
    return replace(
        draft,
        num_rows=next(iter(rows.values())).num_documents,
        num_samples=state.num_documents,
        num_tokens=_id_tokens(state.marks),
        num_loss_tokens=state.notes.get(LOSS_TOKENS, 0),
        drops=state.drops,
        notes={name: count for name, count in state.notes.items() if name != LOSS_TOKENS},
        files=files,
    )


def packed(manifest: DatasetManifest) -> bytes:
    """The manifest's bytes."""
    if isinstance(manifest, Manifest):
        return pack_manifest(manifest)
    return pack_sample_manifest(manifest)


def read_dataset_manifest(path: Path, task: Task) -> DatasetManifest | None:
    """The manifest at `path` as a task writes it, None where there is none."""
    if not path.exists():
        return None
    unpack = unpack_manifest if task is Task.PRETRAIN else unpack_sample_manifest
    return unpack(path.read_bytes(), where=str(path))


def _id_tokens(marks: Mapping[str, SpoolMark]) -> int:
    """Tokens of all columns of ids."""
    return sum(mark.num_tokens for name, mark in marks.items() if name.endswith("input_ids"))
