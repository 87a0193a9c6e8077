"""The manifest of a run, whichever kind of dataset it writes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from llm_data.config import RunIdentity, Task
from llm_data.edge.run_folder import RunState
from llm_data.formats.manifest import Manifest, pack_manifest, unpack_manifest
from llm_data.formats.manifest_parts import FileEntry

DatasetManifest = Manifest

# What encoders count for the manifest alone.
LOSS_TOKENS = "loss_tokens"


def identity_of(manifest: DatasetManifest) -> RunIdentity:
    """The identity of the run that writes, or wrote, a manifest."""
    options: dict[str, str | int | bool | None] = {"on-error": manifest.on_error}
    options |= {
        "task": Task.PRETRAIN.value,
        "key": manifest.key,
        "level": manifest.level,
        "dtype": manifest.dtype,
        "eod id": manifest.eod_id,
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
    (mark,) = state.marks.values()
    return replace(
        draft,
        num_documents=mark.num_documents,
        num_sequences=mark.num_sequences,
        num_tokens=mark.num_tokens,
        drops=state.drops,
        files=files,
    )


def packed(manifest: DatasetManifest) -> bytes:
    """The manifest's bytes."""
    return pack_manifest(manifest)


def read_dataset_manifest(path: Path, task: Task) -> DatasetManifest | None:
    """The manifest at `path` as a task writes it, None where there is none."""
    if not path.exists():
        return None
    return unpack_manifest(path.read_bytes(), where=str(path))
