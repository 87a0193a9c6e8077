"""The reading half of a run: records in, columns of whole chunks out."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

from llm_data.config import OnError
from llm_data.edge.console.progress import Progress
from llm_data.edge.runs.columns import Columns
from llm_data.edge.runs.planning import Plan
from llm_data.edge.runs.run_folder import RejectFile, RunFolder, RunState, add_counts
from llm_data.edge.runs.workers import Crew
from llm_data.edge.sources.quarantine import quarantine_line
from llm_data.edge.sources.readers import Meter, read_batches, where
from llm_data.encode import EncodedBatch
from llm_data.errors import DataError
from llm_data.records import COUNTED


def encode_chunks(
    plan: Plan, folder: RunFolder, state: RunState, *, crew: Crew, progress: Progress
) -> Iterator[RunState]:
    """The state after each chunk of text, everything before it on the disk; the last is read."""
    columns = Columns(folder, plan.spooled, marks=state.marks)
    rejects = folder.open_rejects(state.rejects_bytes)
    with closing(columns), closing(rejects):
        yield from _Encoding(plan, columns, rejects, progress).run(state, crew)


class _Encoding:
    """What one pass over the records holds."""

    def __init__(
        self, plan: Plan, columns: Columns, rejects: RejectFile, progress: Progress
    ) -> None:
        self._plan = plan
        self._columns = columns
        self._rejects = rejects
        self._progress = progress
        self._drops: Counter[str] = Counter()
        self._notes: Counter[str] = Counter()
        names = [column.name for column in plan.spec.columns]
        self._taken = [names.index(name) for name in plan.source_columns]

    def run(self, state: RunState, crew: Crew) -> Iterator[RunState]:
        plan, meter, pending = self._plan, Meter(), 0
        documents, tokens = state.num_documents, state.num_tokens
        batches = read_batches(plan.inputs.files, key=plan.read_key, start=state.place, meter=meter)
        with closing(crew.encode(batches, plan.spec)) as encoded:
            for batch in encoded:
                self._take(batch)
                documents, tokens = documents + batch.num_documents, tokens + batch.num_tokens
                note = f"{documents:,} {plan.unit}, {tokens:,} tokens"
                self._progress.update(done=meter.bytes, total=plan.inputs.bytes, note=note)
                pending += batch.payload_bytes
                state = replace(state, place=batch.end)
                if pending >= plan.config.chunk_bytes:
                    state = self._marked(state)
                    pending = 0
                    yield state
        yield replace(self._marked(state), is_read=True)

    def _take(self, batch: EncodedBatch) -> None:
        for reject in batch.rejects:
            if reject.reason not in COUNTED:
                if self._plan.config.on_error is OnError.STOP:
                    hint = "--on-error skip sets such records aside and counts them"
                    place = where(self._plan.inputs.files, reject.place)
                    raise DataError(f"{place}: {reject.detail} ({hint})")
                self._rejects.append(quarantine_line(self._plan.inputs.files, reject))
            self._drops[reject.reason.value] += 1
        self._notes.update(batch.notes)
        self._columns.append([batch.columns[i] for i in self._taken], sizes=batch.sizes)

    def _marked(self, state: RunState) -> RunState:
        drops, notes = add_counts(state.drops, self._drops), add_counts(state.notes, self._notes)
        self._drops.clear()
        self._notes.clear()
        return replace(
            state,
            marks=self._columns.mark(),
            drops=drops,
            notes=notes,
            rejects_bytes=self._rejects.mark(),
        )
