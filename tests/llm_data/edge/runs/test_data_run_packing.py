"""The packing half of a run, on samples in spools."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from llm_data.config import PreprocessConfig, RunIdentity, Task
from llm_data.edge.console.progress import Silent
from llm_data.edge.datasets.token_dataset import open_token_dataset
from llm_data.edge.runs import packing
from llm_data.edge.runs.columns import Columns
from llm_data.edge.runs.packing import pack_windows
from llm_data.edge.runs.planning import Plan, Row
from llm_data.edge.runs.run_folder import RunFolder, RunState
from llm_data.encode import Column, EncodedColumn

PAD = 9
ROW = Row(length=32, pad_id=PAD)
STATE = RunState(identity=RunIdentity(inputs=(), tokenizer="", options={}))


@dataclass(frozen=True)
class ThreeColumns:
    """The columns of fine-tuning, without an encoder."""

    columns: tuple[Column, ...] = (
        Column(name="input_ids", dtype="uint16"),
        Column(name="attention_mask", dtype="uint16"),
        Column(name="labels", dtype="int32"),
    )


@pytest.fixture
def plan(tmp_path) -> Plan:
    config = PreprocessConfig(
        inputs=["unread"],
        tokenizer=Path("unread"),
        output=tmp_path / "train",
        task=Task.SFT,
        template="unread",
        seq_length=ROW.length,
        pack=True,
    )
    return Plan(config=config, inputs=None, draft=None, spec=ThreeColumns(), read_key=None, row=ROW)


def samples_of(count: int) -> list[tuple[list[int], list[int]]]:
    """Ids that no two samples share, and labels with the first half masked."""
    rng = np.random.default_rng(3)
    found, next_id = [], 10
    for size in rng.integers(2, ROW.length + 1, count):
        ids = [(next_id + i) % 60000 + 10 for i in range(size)]
        next_id += int(size)
        found.append((ids, [-100] * (size // 2) + ids[size // 2 :]))
    return found


def spooled(plan: Plan, samples) -> RunState:
    """The state of a run that has read everything."""
    columns = Columns(RunFolder(plan.layout), plan.spooled, marks={})
    lengths = np.array([len(ids) for ids, _ in samples], "<i4").tobytes()
    columns.append(
        [
            EncodedColumn(
                np.concatenate([ids for ids, _ in samples]).astype("<u2").tobytes(), lengths
            ),
            EncodedColumn(
                np.concatenate([labels for _, labels in samples]).astype("<i4").tobytes(), lengths
            ),
        ],
        sizes=np.ones(len(samples), "<i4").tobytes(),
    )
    marks = columns.mark()
    columns.close()
    return RunState(identity=STATE.identity, marks=marks, is_read=True)


def finish(plan: Plan, state: RunState, *, windows: int | None = None) -> RunState:
    """Pack so many windows, or all."""
    for number, reached in enumerate(
        pack_windows(plan, RunFolder(plan.layout), state, progress=Silent()), start=1
    ):
        state = reached
        if number == windows:
            break
    return state


def columns_of(plan: Plan, state: RunState) -> dict[str, list[list[int]]]:
    """Every column's rows, as the finished run would publish them."""
    folder = RunFolder(plan.layout)
    Columns(folder, plan.published, marks=state.packed.marks).write_indexes()
    for spool, final in folder.published.items():
        if spool.exists():
            spool.rename(final)
    opened = {pair.spool: open_token_dataset(pair.stem) for pair in plan.layout.pairs}
    return {
        name: [dataset.document(i).tolist() for i in range(len(dataset))]
        for name, dataset in opened.items()
    }


@pytest.mark.parametrize("window_tokens", [1 << 20, 700])
def test_every_sample_stands_whole_in_one_row(plan, monkeypatch, window_tokens):
    monkeypatch.setattr(packing, "WINDOW_TOKENS", window_tokens)
    monkeypatch.setattr(packing, "WINDOW_ROWS", 1)
    monkeypatch.setattr(packing, "_BLOCK_TOKENS", 5 * ROW.length)
    samples = samples_of(300)
    found = columns_of(plan, finish(plan, spooled(plan, samples)))
    cut = []
    for ids, mask, labels, ends in zip(*found.values(), strict=True):
        assert len(ids) == len(mask) == len(labels) == ROW.length
        assert ends[0] == 0
        for ordinal, (start, end) in enumerate(pairwise(ends), start=1):
            cut.append((ids[start:end], labels[start:end]))
            assert mask[start:end] == [ordinal] * (end - start)
        rest = ROW.length - ends[-1]
        assert ids[ends[-1] :] == [PAD] * rest
        assert mask[ends[-1] :] == [0] * rest
        assert labels[ends[-1] :] == [-100] * rest
    assert sorted(cut) == sorted(samples)


def test_a_kill_after_any_window_does_not_change_a_byte(plan, monkeypatch):
    monkeypatch.setattr(packing, "WINDOW_TOKENS", 700)
    monkeypatch.setattr(packing, "WINDOW_ROWS", 1)
    samples = samples_of(200)
    state = spooled(plan, samples)
    stopped = finish(plan, state, windows=2)
    assert 0 < stopped.packed.samples < len(samples)
    folder = RunFolder(plan.layout)
    # What a killed run wrote after its last state.
    with (folder.column("labels") / "tokens.bin").open("ab") as stream:
        stream.write(b"torn")
    resumed = finish(plan, stopped)
    whole = finish(plan, state)
    assert resumed.packed == whole.packed


def test_windows_hold_no_more_than_they_may(plan, monkeypatch):
    monkeypatch.setattr(packing, "WINDOW_TOKENS", 700)
    monkeypatch.setattr(packing, "WINDOW_ROWS", 1)
    samples = samples_of(200)
    folder = RunFolder(plan.layout)
    before = 0
    for state in pack_windows(plan, folder, spooled(plan, samples), progress=Silent()):
        tokens = sum(len(ids) for ids, _ in samples[before : state.packed.samples])
        following = samples[state.packed.samples :][:1]
        assert tokens <= 700
        assert not following or tokens + len(following[0][0]) > 700
        before = state.packed.samples
    assert before == 200
