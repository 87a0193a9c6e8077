"""Preprocessing: files in, a dataset out, from wherever the last run was killed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from llm_data.config import OnError, PreprocessConfig, differences
from llm_data.edge.console.progress import Progress, Silent
from llm_data.edge.datasets.dataset_manifests import (
    DatasetManifest,
    completed,
    identity_of,
    packed,
    read_dataset_manifest,
)
from llm_data.edge.durable import with_suffix, writing_to
from llm_data.edge.runs.columns import Columns
from llm_data.edge.runs.encoding import encode_chunks
from llm_data.edge.runs.planning import Plan, inputs_of, worker_count
from llm_data.edge.runs.run_folder import RunFolder, RunState
from llm_data.edge.runs.specs import make_plan, with_backend
from llm_data.edge.runs.workers import Crew
from llm_data.edge.sources.quarantine import quarantined_place
from llm_data.errors import DataError

# What encoders load only when they are built.
_LATE_MODULES = ("tokenizers",)
_KEPT = "what is done is kept, run again to go on"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run made. `resumed_documents` were there before; `already_done` did nothing."""

    manifest: DatasetManifest
    already_done: bool
    resumed_documents: int
    ignored: Mapping[str, int]


def preprocess(config: PreprocessConfig, *, progress: Progress | None = None) -> RunResult:
    """Write the dataset at `config.stem`; byte-identical for any workers and kills."""
    shown = progress or Silent()
    inputs = inputs_of(config)
    modules = [f"llm_data.tasks.{config.task.value}", *_LATE_MODULES]
    with Crew(worker_count(config, inputs), modules=modules) as crew:
        if config.overwrite or not with_suffix(config.stem, ".json").exists():
            # They load while the tokenizer is looked at here.
            crew.start()
        plan = make_plan(config, inputs)
        folder = RunFolder(plan.layout)
        if (manifest := _finished(plan)) is not None:
            folder.remove()
            return _result(plan, manifest, already_done=True)
        config.stem.parent.mkdir(parents=True, exist_ok=True)
        with folder.locked():
            state = _starting_state(plan, folder)
            if not folder.is_ready:
                _check_room(plan)
                with writing_to(folder.path, afterwards=_KEPT):
                    ready = _proven(plan, folder, state, crew=crew, progress=shown)
                    _run(ready, folder, state, crew=crew, progress=shown)
            folder.publish()
    manifest = read_dataset_manifest(plan.layout.manifest, config.task)
    assert manifest is not None
    return _result(plan, manifest, already_done=False, resumed=state.num_documents)


def _finished(plan: Plan) -> DatasetManifest | None:
    """The manifest of this very run if it is done; an error if another run's result is there."""
    config, layout = plan.config, plan.layout
    if config.overwrite:
        return None
    manifest = read_dataset_manifest(layout.manifest, config.task)
    if manifest is None:
        return None
    changed = differences(identity_of(manifest), plan.identity, sources=plan.inputs.sources)
    if changed:
        raise DataError(
            f"{layout.manifest}: made by a different run: {'; '.join(changed)}; "
            "--overwrite replaces it, or choose another --output"
        )
    for name, entry in manifest.files.items():
        path = layout.files[name]
        found = path.stat().st_size if path.exists() else None
        if found != entry.bytes:
            what = "missing" if found is None else f"{found} bytes"
            raise DataError(f"{path}: {what}, want {entry.bytes} bytes; --overwrite makes it again")
    return manifest


def _check_room(plan: Plan) -> None:
    """Old results go when that is asked for, the manifest first, and only then."""
    layout = plan.layout
    finals = [layout.manifest, *layout.files.values(), layout.rejects]
    there = [path for path in finals if path.exists()]
    if there and not plan.config.overwrite:
        raise DataError(f"{there[0]}: exists without a manifest; --overwrite replaces it")
    for path in there:
        path.unlink()


def _starting_state(plan: Plan, folder: RunFolder) -> RunState:
    """The unfinished run's state if it is this run's, else a fresh one in a clean folder."""
    config, fresh = plan.config, RunState(identity=plan.identity)
    replacing = config.overwrite and plan.layout.manifest.exists()
    state = folder.load() if config.resume and not replacing else None
    if state is not None:
        then = state.identity
        if then.options.get("on-error") == OnError.STOP.value:
            # Such a run has met no error up to its mark: either policy may carry it on.
            then = replace(then, options={**then.options, "on-error": config.on_error.value})
        changed = differences(then, plan.identity, sources=plan.inputs.sources)
        if not changed:
            return replace(state, identity=plan.identity)
        if not config.overwrite:
            raise DataError(
                f"{folder.path}: an unfinished run of a different kind: {'; '.join(changed)}; "
                "--no-resume starts over"
            )
    folder.clear()
    return fresh


def _proven(
    plan: Plan, folder: RunFolder, state: RunState, *, crew: Crew, progress: Progress
) -> Plan:
    """The plan with its backend; a run that cannot have it leaves nothing behind."""
    try:
        return with_backend(plan, crew=crew, progress=progress)
    except DataError:
        if not state.num_documents:
            folder.remove()
        raise


def _run(plan: Plan, folder: RunFolder, state: RunState, *, crew: Crew, progress: Progress) -> None:
    """Do what is left, chunk by chunk, and leave the folder ready to publish."""
    if state.num_documents:
        progress.say(f"resuming after {state.num_documents:,} {plan.unit}")
    if not state.is_read:
        state = _read(plan, folder, state, crew=crew, progress=progress)
    if plan.row is not None:
        from llm_data.edge.runs.packing import pack_windows

        for reached in pack_windows(plan, folder, state, progress=progress):
            state = reached
            folder.save(state)
    marks = state.marks if plan.row is None else state.packed.marks
    written = Columns(folder, plan.published, marks=marks).write_indexes()
    files = {
        f"{pair.entry}{end}": entry
        for pair in plan.layout.pairs
        for end, entry in written[pair.spool].items()
    }
    folder.seal(packed(completed(plan.draft, state, files)))


def _read(
    plan: Plan, folder: RunFolder, state: RunState, *, crew: Crew, progress: Progress
) -> RunState:
    """The state when no record is left."""
    try:
        for reached in encode_chunks(plan, folder, state, crew=crew, progress=progress):
            state = reached
            folder.save(state)
    except DataError:
        if not state.num_documents:
            folder.remove()
        raise
    if not state.num_documents:
        first = folder.first_reject()
        folder.remove()
        raise DataError(_nothing_made(plan, state, first_reject=first))
    _check_unchanged(plan)
    return state


def _nothing_made(plan: Plan, state: RunState, *, first_reject: bytes) -> str:
    """Why a run gave no dataset, in words; the quarantine goes with it, so its first is quoted."""
    files = plan.inputs.files
    where = str(files[0].path) if len(files) == 1 else f"{len(files)} files"
    told = ", ".join(f"{count} {reason}" for reason, count in state.drops.items())
    quoted = f"; the first error: {quarantined_place(first_reject)}" if first_reject else ""
    return f"no {plan.unit} in {where}: {told or 'nothing was read'}{quoted}"


def _check_unchanged(plan: Plan) -> None:
    now = inputs_of(plan.config)
    for before, after in zip(plan.inputs.sources, now.sources, strict=True):
        if before.digest != after.digest:
            raise DataError(f"{before.path}: changed while it was read; --no-resume starts over")


def _result(
    plan: Plan, manifest: DatasetManifest, *, already_done: bool, resumed: int = 0
) -> RunResult:
    return RunResult(
        manifest=manifest,
        already_done=already_done,
        resumed_documents=resumed,
        ignored=plan.inputs.ignored,
    )
