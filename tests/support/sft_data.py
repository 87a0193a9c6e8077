"""Sample datasets of conversations made up here, laid out by the contract's own writer."""

import hashlib
import importlib.util
import random
from functools import cache
from pathlib import Path

CONTRACT = Path(__file__).parents[1] / "contracts" / "sample_dataset"
VOCABULARY = 250
IGNORED = -100

Chat = tuple[list[int], list[int]]


@cache
def layout():
    """The module that makes the contract's golden samples."""
    spec = importlib.util.spec_from_file_location("make_samples", CONTRACT / "make_samples.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_chats(count: int, *, longest: int = 30, turns: int = 1, seed: int = 0) -> list[Chat]:
    """Ids and labels of conversations of 4 to `longest` tokens; every answer is learned.

    Answers follow their question by a rule, so that there is something to learn.
    """
    rng = random.Random(seed)
    chats = []
    for _ in range(count):
        ids, labels = [], []
        length = rng.randint(4, longest) // turns
        for _ in range(turns):
            question = [rng.randrange(2, VOCABULARY) for _ in range(max(1, length // 2))]
            answer = [(question[0] + i) % VOCABULARY for i in range(max(1, length - len(question)))]
            ids += question + answer
            labels += [IGNORED] * len(question) + answer
        chats.append((ids, labels))
    return chats


def write_samples(prefix: Path, chats: list[Chat], **manifest) -> Path:
    """A dataset of single samples."""
    ids, labels = [chat[0] for chat in chats], [chat[1] for chat in chats]
    columns = {
        "input_ids": ids,
        "attention_mask": [[1] * len(row) for row in ids],
        "labels": labels,
    }
    return _write(prefix, layout().dataset("sft", columns, template=True), manifest)


def write_packed(prefix: Path, chats: list[Chat], *, seq_length: int, **manifest) -> Path:
    """A dataset of packed rows, filled in order: a chat begins a row when it does not fit."""
    rows: list[list[Chat]] = [[]]
    for chat in chats:
        if sum(len(ids) for ids, _ in [*rows[-1], chat]) > seq_length:
            rows.append([])
        rows[-1].append(chat)
    columns = {"input_ids": [], "attention_mask": [], "labels": []}
    ends = []
    for row in rows:
        stops = [0]
        for ids, _ in row:
            stops.append(stops[-1] + len(ids))
        ends.append(stops)
        left = seq_length - stops[-1]
        columns["input_ids"].append([i for ids, _ in row for i in ids] + [1] * left)
        columns["labels"].append([i for _, labels in row for i in labels] + [IGNORED] * left)
        numbers = [n for n, (ids, _) in enumerate(row, 1) for _ in ids]
        columns["attention_mask"].append(numbers + [0] * left)
    made = layout().dataset("sft", columns, seq_length=seq_length, template=True)
    made["boundaries"] = ends
    made["manifest"] |= {"packed": True, "pad_id": 1}
    return _write(prefix, made, manifest)


def _write(prefix: Path, made, manifest) -> Path:
    made["manifest"] |= {"tokenizer": tokenizer("tiny"), **manifest}
    prefix.parent.mkdir(parents=True, exist_ok=True)
    for name, data in layout().files_of(made).items():
        name = name.removeprefix(layout().PREFIX)
        (prefix.parent / f"{prefix.name}{name}").write_bytes(data)
    return prefix


def tokenizer(name: str) -> dict[str, object]:
    """What a manifest says of a tokenizer of that name."""
    return {
        **layout().TOKENIZER,
        "digest": hashlib.sha256(name.encode()).hexdigest(),
        "vocab_size": VOCABULARY,
    }
