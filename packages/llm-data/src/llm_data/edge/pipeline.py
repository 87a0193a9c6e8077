"""Preprocessing: files in, a token dataset out, from wherever the last run was killed."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version

import numpy as np
import orjson

from llm_data.config import (
    OnError,
    PreprocessConfig,
    RunIdentity,
    differences,
    identity_of,
)
from llm_data.edge.inputs import Inputs, find_inputs
from llm_data.edge.progress import Progress, Silent
from llm_data.edge.readers import UNITS, Meter, read_batches
from llm_data.edge.run_folder import RejectFile, RunFolder, RunState, add_drops
from llm_data.edge.token_dataset import Spool, read_manifest, with_suffix
from llm_data.edge.tokenizer_files import find_tokenizer_file, read_tokenizer_facts
from llm_data.edge.workers import encode_in_order
from llm_data.encode import EncodedBatch, EncoderSpec
from llm_data.errors import DataError, UsageError
from llm_data.formats.manifest import FileEntry, Manifest, Tokenizer, pack_manifest
from llm_data.records import COUNTED, Reject
from llm_data.tasks.pretrain import PretrainSpec
from llm_data.tokenizer import TokenDtype, TokenizerFacts, choose_dtype

# Below this much input a further process costs more than it brings.
BYTES_PER_WORKER = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run made. `resumed_documents` were there before; `already_done` did nothing."""

    manifest: Manifest
    already_done: bool
    resumed_documents: int
    ignored: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Everything decided before the first record is read."""

    config: PreprocessConfig
    inputs: Inputs
    tokenizer: TokenizerFacts
    dtype: TokenDtype
    identity: RunIdentity

    @property
    def encoder(self) -> EncoderSpec:
        return PretrainSpec(
            tokenizer_file=find_tokenizer_file(self.config.tokenizer),
            key=self.config.key,
            eod_id=self.identity.eod_id,
            dtype=self.dtype,
        )

    @property
    def workers(self) -> int:
        if self.config.workers is not None:
            return self.config.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return max(1, min(cores or 1, self.inputs.bytes // BYTES_PER_WORKER))


def preprocess(config: PreprocessConfig, *, progress: Progress | None = None) -> RunResult:
    """Write `<output>_<key>_document.{bin,idx,json}`; byte-identical for any workers and kills."""
    plan = _plan(config)
    folder = RunFolder(config.stem)
    if (manifest := _finished(plan)) is not None:
        folder.remove()
        return _result(plan, manifest, already_done=True)
    config.stem.parent.mkdir(parents=True, exist_ok=True)
    with folder.locked():
        state = _starting_state(plan, folder)
        if not folder.is_ready:
            _check_room(plan)
            _run(plan, folder, state, progress or Silent())
        folder.publish()
    manifest = read_manifest(config.stem)
    assert manifest is not None
    return _result(plan, manifest, already_done=False, resumed=state.mark.num_documents)


def _plan(config: PreprocessConfig) -> _Plan:
    tokenizer = read_tokenizer_facts(config.tokenizer, eos_token=config.eos_token)
    if config.append_eod and tokenizer.eos_id is None:
        raise UsageError(
            f"{config.tokenizer}: --append-eod needs an end-of-text token, but no eos_token in "
            "tokenizer_config.json or special_tokens_map.json beside it; --eos-token names one"
        )
    inputs = find_inputs(config.inputs, patterns=config.patterns, output_stem=config.stem)
    dtype = choose_dtype(config.dtype, vocab_size=tokenizer.vocab_size)
    identity = RunIdentity(
        inputs=tuple(source.digest for source in inputs.sources),
        tokenizer=tokenizer.digest,
        eod_id=tokenizer.eos_id if config.append_eod else None,
        key=config.key,
        dtype=dtype,
        on_error=config.on_error.value,
    )
    return _Plan(config=config, inputs=inputs, tokenizer=tokenizer, dtype=dtype, identity=identity)


def _finished(plan: _Plan) -> Manifest | None:
    """The manifest of this very run if it is done; an error if another run's result is there."""
    stem = plan.config.stem
    manifest = None if plan.config.overwrite else read_manifest(stem)
    if manifest is None:
        return None
    changed = differences(identity_of(manifest), plan.identity, sources=plan.inputs.sources)
    if changed:
        raise DataError(
            f"{stem}.json: made by a different run: {'; '.join(changed)}; "
            "--overwrite replaces it, or choose another --output"
        )
    for name, entry in manifest.files.items():
        path = with_suffix(stem, f".{name}")
        found = path.stat().st_size if path.exists() else None
        if found != entry.bytes:
            what = "missing" if found is None else f"{found} bytes"
            raise DataError(f"{path}: {what}, want {entry.bytes} bytes; --overwrite makes it again")
    return manifest


def _check_room(plan: _Plan) -> None:
    """Old results go when that is asked for, the manifest first, and only then."""
    stem = plan.config.stem
    finals = [with_suffix(stem, end) for end in (".json", ".bin", ".idx", ".rejects.jsonl")]
    there = [path for path in finals if path.exists()]
    if there and not plan.config.overwrite:
        raise DataError(f"{there[0]}: exists without a manifest; --overwrite replaces it")
    for path in there:
        path.unlink()


def _starting_state(plan: _Plan, folder: RunFolder) -> RunState:
    """The unfinished run's state if it is this run's, else a fresh one in a clean folder."""
    config, fresh = plan.config, RunState(identity=plan.identity)
    replacing = config.overwrite and with_suffix(config.stem, ".json").exists()
    state = folder.load() if config.resume and not replacing else None
    if state is not None:
        then = state.identity
        if then.on_error == OnError.STOP.value:
            # Such a run has met no error up to its mark: either policy may carry it on.
            then = replace(then, on_error=plan.identity.on_error)
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


def _run(plan: _Plan, folder: RunFolder, state: RunState, progress: Progress) -> None:
    """Encode what is left, chunk by chunk, and leave the folder ready to publish."""
    if state.mark.num_documents:
        progress.say(f"resuming after {state.mark.num_documents:,} documents")
    spool = Spool(folder.path, dtype=np.dtype(plan.dtype), mark=state.mark)
    rejects = folder.open_rejects(state.rejects_bytes)
    with closing(spool), closing(rejects):
        try:
            for reached in _chunks(plan, spool, rejects, state, progress):
                state = reached
                folder.save(state)
        except DataError:
            if not state.mark.num_documents:
                folder.remove()
            raise
        if not state.mark.num_documents:
            folder.remove()
            raise DataError(f"no documents in {len(plan.inputs.files)} files: {_told(state.drops)}")
        _check_unchanged(plan)
        files = spool.write_index()
    folder.seal(pack_manifest(_manifest(plan, state, files)))


def _chunks(
    plan: _Plan, spool: Spool, rejects: RejectFile, state: RunState, progress: Progress
) -> Iterator[RunState]:
    """The state after each chunk of text, everything before it on the disk."""
    meter = Meter()
    batches = read_batches(plan.inputs.files, key=plan.config.key, start=state.place, meter=meter)
    drops: Counter[str] = Counter()
    pending = 0
    documents, tokens = state.mark.num_documents, state.mark.num_tokens
    with closing(encode_in_order(batches, plan.encoder, workers=plan.workers)) as encoded:
        for batch in encoded:
            _take(plan, batch, spool, rejects, drops)
            documents, tokens = documents + batch.num_documents, tokens + batch.num_tokens
            note = f"{documents:,} documents, {tokens:,} tokens"
            progress.update(done=meter.bytes, total=plan.inputs.bytes, note=note)
            pending += batch.payload_bytes
            state = replace(state, place=batch.end)
            if pending >= plan.config.chunk_bytes:
                state = _marked(state, spool, rejects, drops)
                pending = 0
                yield state
    yield _marked(state, spool, rejects, drops)


def _take(
    plan: _Plan, batch: EncodedBatch, spool: Spool, rejects: RejectFile, drops: Counter[str]
) -> None:
    for reject in batch.rejects:
        if reject.reason not in COUNTED:
            if plan.config.on_error is OnError.STOP:
                hint = "--on-error skip sets such records aside and counts them"
                raise DataError(f"{_where(plan, reject)}: {reject.detail} ({hint})")
            rejects.append(_quarantined(plan, reject))
        drops[reject.reason.value] += 1
    (column,) = batch.columns
    spool.append(column.tokens, lengths=column.lengths, sizes=batch.sizes)


def _marked(state: RunState, spool: Spool, rejects: RejectFile, drops: Counter[str]) -> RunState:
    total = add_drops(state.drops, drops)
    drops.clear()
    return replace(state, mark=spool.mark(), drops=total, rejects_bytes=rejects.mark())


def _where(plan: _Plan, reject: Reject) -> str:
    file = plan.inputs.files[reject.place.source]
    unit = UNITS[file.kind]
    return str(file.path) if unit == "file" else f"{file.path}: {unit} {reject.place.number}"


def _quarantined(plan: _Plan, reject: Reject) -> bytes:
    file = plan.inputs.files[reject.place.source]
    return orjson.dumps(
        {
            "file": str(file.path),
            "unit": UNITS[file.kind],
            "number": reject.place.number,
            "reason": reject.reason.value,
            "detail": reject.detail,
            "raw": reject.raw,
        }
    )


def _check_unchanged(plan: _Plan) -> None:
    config = plan.config
    now = find_inputs(config.inputs, patterns=config.patterns, output_stem=config.stem)
    for before, after in zip(plan.inputs.sources, now.sources, strict=True):
        if before.digest != after.digest:
            raise DataError(f"{before.path}: changed while it was read; --no-resume starts over")


def _manifest(plan: _Plan, state: RunState, files: dict[str, FileEntry]) -> Manifest:
    config = plan.config
    return Manifest(
        dtype=plan.dtype,
        num_documents=state.mark.num_documents,
        num_sequences=state.mark.num_sequences,
        num_tokens=state.mark.num_tokens,
        key=config.key,
        level="document",
        append_eod=config.append_eod,
        eod_id=plan.identity.eod_id,
        tokenizer=Tokenizer(**asdict(plan.tokenizer)),
        sources=plan.inputs.sources,
        drops=state.drops,
        on_error=config.on_error.value,
        files=files,
        created_by=f"llm-data {version('llm-data')}",
    )


def _told(drops: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in drops.items()) or "nothing was read"


def _result(plan: _Plan, manifest: Manifest, *, already_done: bool, resumed: int = 0) -> RunResult:
    return RunResult(
        manifest=manifest,
        already_done=already_done,
        resumed_documents=resumed,
        ignored=plan.inputs.ignored,
    )
