"""Makes golden/ and broken/ of the sample dataset: `python make_samples.py`.

Nothing here comes from llm_data: files are laid out by struct as the SPEC says. Ids are those of
the token dataset's golden tokenizer: 0 ends a text, 1 fills rows, 2 to 257 are the bytes in the
order of the byte-level alphabet.
"""

import copy
import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
PREFIX = "tiny"
IGNORED, EOS, PAD = -100, 0, 1
CODES = {"uint16": (8, "H"), "int32": (4, "i")}
TOKENIZER = json.loads((HERE.parent / "token_dataset/golden/tiny_text_document.json").read_text())[
    "tokenizer"
]

Rows = list[list[int]]
Dataset = dict  # manifest: the keys given; columns: name to Rows; boundaries: Rows or None
Files = dict[str, bytes]


def byte_ids(text: str) -> list[int]:
    """A text's ids by GPT-2's published order of bytes: printable ones first, then the others."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    order = printable + [byte for byte in range(256) if byte not in printable]
    return [2 + order.index(byte) for byte in text.encode()]


def turn(question: str, answer: str) -> tuple[list[int], list[int]]:
    """Ids and labels of a turn: the answer and its end are learned."""
    prompt, learned = byte_ids(question), [*byte_ids(answer), EOS]
    return prompt + learned, [IGNORED] * len(prompt) + learned


def conversation(*turns: tuple[str, str]) -> tuple[list[int], list[int]]:
    ids, labels = [], []
    for pair in turns:
        more_ids, more_labels = turn(*pair)
        ids += more_ids
        labels += more_labels
    return ids, labels


CHATS = [
    conversation(("hi>", "yes")),
    # Two ends of text in one sample: they do not tell where samples end.
    conversation(("1>", "a"), ("2>", "bé")),
    conversation(("?>", "日本")),
    conversation(("no>", "!")),
]


def sft() -> Dataset:
    ids, labels = [chat[0] for chat in CHATS], [chat[1] for chat in CHATS]
    ones = [[1] * len(row) for row in ids]
    columns = {"input_ids": ids, "attention_mask": ones, "labels": labels}
    return dataset("sft", columns, seq_length=16, template=True)


def sft_packed() -> Dataset:
    """Chats of 7, 10, 9 and 5 tokens in two rows of 16: 7 + 9, and 10 + 5 with one to fill."""
    columns: dict[str, Rows] = {"input_ids": [], "attention_mask": [], "labels": []}
    boundaries = []
    for members in ([0, 2], [1, 3]):
        row = {"input_ids": [], "attention_mask": [], "labels": []}
        ends = [0]
        for number, member in enumerate(members, start=1):
            ids, labels = CHATS[member]
            row["input_ids"] += ids
            row["labels"] += labels
            row["attention_mask"] += [number] * len(ids)
            ends.append(len(row["input_ids"]))
        for name, filling in (("input_ids", PAD), ("attention_mask", 0), ("labels", IGNORED)):
            columns[name].append(row[name] + [filling] * (16 - ends[-1]))
        boundaries.append(ends)
    made = dataset("sft", columns, seq_length=16, template=True)
    made["boundaries"] = boundaries
    made["manifest"] |= {"packed": True, "pad_id": PAD}
    return made


def pairwise() -> Dataset:
    chosen, rejected = conversation(("q>", "good")), conversation(("q>", "bad"))
    columns = {
        "chosen_input_ids": [chosen[0]],
        "chosen_labels": [chosen[1]],
        "rejected_input_ids": [rejected[0]],
        "rejected_labels": [rejected[1]],
    }
    return dataset("pairwise", columns, template=True)


def prompt() -> Dataset:
    ids = [byte_ids("1+1>"), byte_ids("2+3>")]
    columns = {
        "input_ids": ids,
        "attention_mask": [[1] * len(row) for row in ids],
        "answer": [byte_ids("2"), byte_ids("five")],
        "level": [[], byte_ids("x")],
    }
    return dataset("prompt", columns, template=True)


def prm() -> Dataset:
    """Each step ends in `#`; the label there is the id of `+` or `-`."""
    ids = [byte_ids("a#b#")]
    labels = [[IGNORED, *byte_ids("+"), IGNORED, *byte_ids("-")]]
    columns = {"input_ids": ids, "labels": labels, "attention_mask": [[1] * 4]}
    return dataset("prm", columns)


def dataset(
    task: str, columns: dict[str, Rows], *, seq_length: int | None = None, template: bool = False
) -> Dataset:
    digest = hashlib.sha256(b"{{ text }}").hexdigest()
    manifest = {
        "format": "sample-dataset",
        "version": 1,
        "task": task,
        "columns": [
            {"name": name, "dtype": "int32" if name.endswith("labels") else "uint16"}
            for name in columns
        ],
        "packed": False,
        "seq_length": seq_length,
        "pad_id": None,
        "template": {"name": "tiny", "digest": digest} if template else None,
        "options": {"thinking": "keep", "mask_history": False} if template else {},
        "tokenizer": TOKENIZER,
        "sources": [{"path": "chats.jsonl", "files": 1, "bytes": 9, "digest": "0" * 64}],
        "drops": {},
        "notes": {},
        "on_error": "stop",
        "created_by": "make_samples.py",
    }
    return {"manifest": manifest, "columns": columns, "boundaries": None, "counts": {}}


GOLDEN = {"sft": sft, "sft_packed": sft_packed, "pairwise": pairwise, "prompt": prompt, "prm": prm}


def counts(made: Dataset) -> dict[str, int]:
    """What the manifest counts, of the columns as they are."""
    columns, boundaries = made["columns"], made["boundaries"]
    rows = len(next(iter(columns.values())))
    ids = [row for name, rows in columns.items() if name.endswith("input_ids") for row in rows]
    labels = [row for name, rows in columns.items() if name.endswith("labels") for row in rows]
    return {
        "num_rows": rows,
        "num_samples": sum(len(row) - 1 for row in boundaries) if boundaries else rows,
        "num_tokens": sum(row[-1] for row in boundaries) if boundaries else sum(map(len, ids)),
        "num_loss_tokens": sum(label != IGNORED for row in labels for label in row),
    }


def pair_files(rows: Rows, dtype: str) -> tuple[bytes, bytes]:
    """`.bin` and `.idx`, one sequence a document."""
    code, letter = CODES[dtype]
    size = struct.calcsize("<" + letter)
    ends = [sum(map(len, rows[:count])) * size for count in range(len(rows) + 1)]
    head = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, code, len(rows), len(rows) + 1)
    lengths = struct.pack(f"<{len(rows)}i", *map(len, rows))
    pointers = struct.pack(f"<{len(rows)}q", *ends[:-1])
    documents = struct.pack(f"<{len(rows) + 1}q", *range(len(rows) + 1))
    data = b"".join(struct.pack(f"<{len(row)}{letter}", *row) for row in rows)
    return data, head + lengths + pointers + documents


def files_of(made: Dataset) -> Files:
    """Every file by its name; the manifest's counts and checksums are those of the columns."""
    files: Files = {}
    entries = {}
    dtypes = {column["name"]: column["dtype"] for column in made["manifest"]["columns"]}
    pairs = {name: (f"{PREFIX}_packed_{name}_document", name) for name in made["columns"]}
    if made["boundaries"] is not None:
        pairs["cu_seqlens"] = (f"{PREFIX}_packed_cu_seqlens", "cu_seqlens")
    for name, (stem, entry) in pairs.items():
        rows = made["boundaries"] if name == "cu_seqlens" else made["columns"][name]
        pair = pair_files(rows, dtypes.get(name, "int32"))
        for end, data in zip(("bin", "idx"), pair, strict=True):
            files[f"{stem}.{end}"] = data
            entries[f"{entry}.{end}"] = {
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
    body = made["manifest"] | counts(made) | made["counts"] | {"files": entries}
    files[f"{PREFIX}_packed.json"] = (json.dumps(body, indent=2) + "\n").encode()
    return files


def edited(base: str, change: Callable[[Dataset], object]) -> Callable[[], Files]:
    """A dataset whose rows or keys are wrong, and whose checksums are right."""

    def make() -> Files:
        made = copy.deepcopy(GOLDEN[base]())
        change(made)
        return files_of(made)

    return make


def cell(base: str, column: str, row: int, at: int, value: int) -> Callable[[], Files]:
    """One wrong entry of a column."""
    return edited(base, lambda made: made["columns"][column][row].__setitem__(at, value))


def boundaries(row: int, ends: list[int]) -> Callable[[], Files]:
    """Other ends of samples in a packed row. The counts stay those of the good one."""

    def change(made: Dataset) -> None:
        made["counts"] = counts(made)
        made["boundaries"][row] = ends

    return edited("sft_packed", change)


def count(base: str, key: str, value: int) -> Callable[[], Files]:
    return edited(base, lambda made: made["counts"].update({key: value}))


def manifest(change: Callable[[dict], object], *, base: str = "sft") -> Callable[[], Files]:
    """A wrong manifest alone: no file beside it is looked at."""

    def make() -> Files:
        name = f"{PREFIX}_packed.json"
        body = json.loads(files_of(GOLDEN[base]())[name])
        change(body)
        return {name: (json.dumps(body, indent=2) + "\n").encode()}

    return make


def raw(base: str, name: str, change: Callable[[bytes], bytes | None]) -> Callable[[], Files]:
    """A file whose bytes are changed, or that is left out."""

    def make() -> Files:
        files = files_of(GOLDEN[base]())
        data = change(files.pop(f"{PREFIX}_{name}"))
        return files if data is None else {**files, f"{PREFIX}_{name}": data}

    return make


def described(make: Callable[[], Files], change: Callable[[dict], object]) -> Callable[[], Files]:
    """The same files with another manifest."""

    def made() -> Files:
        files, name = make(), f"{PREFIX}_packed.json"
        body = json.loads(files[name])
        change(body)
        return {**files, name: (json.dumps(body, indent=2) + "\n").encode()}

    return made


def index_of_labels(change: Callable[[bytes], bytes]) -> Callable[[], Files]:
    """A wrong index of sft's labels; the manifest has its size and checksum."""
    make = raw("sft", "packed_labels_document.idx", change)
    data = make()[f"{PREFIX}_packed_labels_document.idx"]
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return described(make, lambda body: body["files"].update({"labels.idx": entry}))


def patched(at: int, kind: str, value: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        out = bytearray(data)
        struct.pack_into("<" + kind, out, at, value)
        return bytes(out)

    return change


def fewer_documents(data: bytes) -> bytes:
    """Four sequences in three documents."""
    head = data[:26] + struct.pack("<Q", 4)
    return head + data[34 : 34 + 4 * 12] + struct.pack("<4q", 0, 1, 2, 4)


def without(name: str) -> Callable[[Dataset], None]:
    def change(made: Dataset) -> None:
        del made["columns"][name]
        columns = made["manifest"]["columns"]
        made["manifest"]["columns"] = [column for column in columns if column["name"] != name]

    return change


def beyond(made: Dataset) -> None:
    made["columns"]["position_ids"] = made["columns"]["attention_mask"]
    made["manifest"]["columns"].append({"name": "position_ids", "dtype": "uint16"})


def one_row_fewer(made: Dataset) -> None:
    made["columns"]["labels"].pop()


def one_label_fewer(made: Dataset) -> None:
    made["columns"]["labels"][1].pop()
    made["columns"]["labels"][2].insert(0, IGNORED)


def emptied(made: Dataset) -> None:
    for rows in made["columns"].values():
        rows[3] = []


def shortened_pack(made: Dataset) -> None:
    for rows in made["columns"].values():
        rows[1].pop()


def set_key(key: str, value: object) -> Callable[[dict], None]:
    return lambda body: body.__setitem__(key, value)


# Offsets in the index of sft's labels: four rows.
POINTERS, DOCUMENTS = 34 + 16, 34 + 16 + 32

# case: (who must find it, words of the message, how it is made)
CASES: dict[str, tuple[str, str, Callable[[], Files]]] = {
    "manifest_format": ("open", "want 'sample-dataset'", manifest(set_key("format", "arch"))),
    "manifest_version": ("open", "version 2, want 1", manifest(set_key("version", 2))),
    "manifest_unknown_key": (
        "open",
        "'num_row'; did you mean 'num_rows'?",
        manifest(lambda body: body.update(num_row=body.pop("num_rows"))),
    ),
    "manifest_missing_key": ("open", "no key 'notes'", manifest(lambda body: body.pop("notes"))),
    "manifest_wrong_type": (
        "open",
        "template.name: 3, want a string",
        manifest(lambda body: body["template"].update(name=3)),
    ),
    "manifest_unknown_task": ("open", "want one of sft", manifest(set_key("task", "kto"))),
    "column_missing": (
        "open",
        "columns are input_ids, attention_mask, want",
        edited("sft", without("labels")),
    ),
    "column_beyond": ("open", "position_ids, want", edited("sft", beyond)),
    "columns_in_other_order": (
        "open",
        "columns are attention_mask, input_ids",
        manifest(lambda body: body["columns"].insert(0, body["columns"].pop(1))),
    ),
    "further_columns_unsorted": (
        "open",
        "level, answer, want distinct names, sorted",
        manifest(lambda body: body["columns"].append(body["columns"].pop(2)), base="prompt"),
    ),
    "column_is_a_path": (
        "open",
        "want a name without '/'",
        manifest(lambda body: body["columns"][2].update(name="../x"), base="prompt"),
    ),
    "labels_of_uint16": (
        "open",
        "labels is uint16, want int32",
        manifest(lambda body: body["columns"][2].update(dtype="uint16")),
    ),
    "files_not_of_the_columns": (
        "open",
        "missing labels.idx; unknown label.idx",
        manifest(lambda body: body["files"].update({"label.idx": body["files"].pop("labels.idx")})),
    ),
    "packed_of_other_task": (
        "open",
        "packed is true, but the task is prm",
        manifest(
            lambda body: body.update(
                packed=True,
                files=body["files"]
                | {f"cu_seqlens.{end}": body["files"]["labels.bin"] for end in ("bin", "idx")},
            ),
            base="prm",
        ),
    ),
    "packed_without_length": (
        "open",
        "seq_length is null",
        manifest(set_key("seq_length", None), base="sft_packed"),
    ),
    "packed_without_pad": (
        "open",
        "pad_id is null",
        manifest(set_key("pad_id", None), base="sft_packed"),
    ),
    "pad_unpacked": ("open", "pad_id is 1, want null", manifest(set_key("pad_id", 1))),
    "samples_not_rows": ("open", "5 samples in 4 rows", manifest(set_key("num_samples", 5))),
    "manifest_not_json": ("open", "not JSON", raw("sft", "packed.json", lambda data: data[:-9])),
    "file_missing": (
        "open",
        "missing",
        raw("sft", "packed_labels_document.idx", lambda data: None),
    ),
    "boundaries_missing": (
        "open",
        "missing",
        raw("sft_packed", "packed_cu_seqlens.bin", lambda data: None),
    ),
    "truncated_bin": (
        "open",
        "wants",
        raw("sft", "packed_labels_document.bin", lambda data: data[:-1]),
    ),
    "rows_differ": ("open", "3 sequences, the manifest wants 4", edited("sft", one_row_fewer)),
    "documents_differ": (
        "open",
        "3 documents, the manifest wants 4",
        index_of_labels(fewer_documents),
    ),
    "dtype_differs": (
        "open",
        "dtype int32, the manifest wants uint16",
        described(
            edited("sft", lambda made: made["manifest"]["columns"][0].update(dtype="int32")),
            lambda body: body["columns"][0].update(dtype="uint16"),
        ),
    ),
    "document_of_two_rows": (
        "verify",
        "document 0 is not one sequence",
        index_of_labels(patched(DOCUMENTS + 8, "q", 2)),
    ),
    "pointers_out_of_order": (
        "verify",
        "must lie end to end",
        index_of_labels(patched(POINTERS + 8, "q", 0)),
    ),
    "lengths_differ": ("verify", "row 1 has 9 entries, want 10", edited("sft", one_label_fewer)),
    "lengths_of_a_side_differ": (
        "verify",
        "row 0 has 8 entries, want 7",
        edited("pairwise", lambda made: made["columns"]["chosen_labels"][0].insert(0, IGNORED)),
    ),
    "empty_row": ("verify", "row 3 has 0 entries, want 1 to 16", edited("sft", emptied)),
    "too_long_row": (
        "verify",
        "row 1 has 10 entries, want 1 to 8",
        edited("sft", lambda made: made["manifest"].update(seq_length=8)),
    ),
    "token_out_of_vocabulary": (
        "verify",
        "row 2, position 0: token 258, want 0 to 257",
        cell("sft", "input_ids", 2, 0, 258),
    ),
    "token_of_second_side_out_of_vocabulary": (
        "verify",
        "row 0, position 1: token 300",
        cell("pairwise", "rejected_input_ids", 0, 1, 300),
    ),
    "further_token_out_of_vocabulary": (
        "verify",
        "answer_document.bin: entry 2: token 999",
        cell("prompt", "answer", 1, 1, 999),
    ),
    "reward_out_of_vocabulary": (
        "verify",
        "row 0, position 3: label 258, want -100 or 0 to 257",
        cell("prm", "labels", 0, 3, 258),
    ),
    "label_of_other_token": (
        "verify",
        "row 0, position 3: label 7, want -100 or the token 90",
        cell("sft", "labels", 0, 3, 7),
    ),
    "negative_label": ("verify", "label -1, want -100", cell("sft", "labels", 0, 3, -1)),
    "label_of_rejected": (
        "verify",
        "rejected_labels_document.bin: row 0, position 4",
        cell("pairwise", "rejected_labels", 0, 4, 9),
    ),
    "first_label": (
        "verify",
        "row 3, position 0: a sample's first label is 79",
        cell("sft", "labels", 3, 0, 79),
    ),
    "first_label_of_second_sample": (
        "verify",
        "row 1, position 10: a sample's first label is 79",
        cell("sft_packed", "labels", 1, 10, 79),
    ),
    "first_reward": ("verify", "first label is 12", cell("prm", "labels", 0, 0, 12)),
    "mask_of_zero": (
        "verify",
        "row 1, position 4: mask 0, want 1",
        cell("sft", "attention_mask", 1, 4, 0),
    ),
    "mask_of_other_sample": (
        "verify",
        "row 0, position 7: mask 1, want 2",
        cell("sft_packed", "attention_mask", 0, 7, 1),
    ),
    "mask_on_filling": (
        "verify",
        "row 1, position 15: mask 1, want 0",
        cell("sft_packed", "attention_mask", 1, 15, 1),
    ),
    "filled_with_other_token": (
        "verify",
        "row 1, position 15: 0 fills the row, want 1",
        cell("sft_packed", "input_ids", 1, 15, EOS),
    ),
    "label_on_filling": (
        "verify",
        "row 1, position 15: label 1 on what fills the row",
        cell("sft_packed", "labels", 1, 15, PAD),
    ),
    "packed_row_too_short": (
        "verify",
        "row 1 has 15 entries, want 16",
        edited("sft_packed", shortened_pack),
    ),
    "boundaries_not_from_0": ("verify", "row 0 starts with 1, want 0", boundaries(0, [1, 7, 16])),
    "boundaries_not_rising": ("verify", "row 0 has 7 after 7", boundaries(0, [0, 7, 7, 16])),
    "boundaries_beyond_row": (
        "verify",
        "row 1 ends its samples at 17, want at most 16",
        boundaries(1, [0, 10, 17]),
    ),
    "row_without_sample": ("verify", "row 1 has 1 boundaries, want at least 2", boundaries(1, [0])),
    "boundary_inside_a_sample": (
        "verify",
        "row 1, position 3: mask 1, want 2",
        boundaries(1, [0, 3, 10, 15]),
    ),
    "num_samples": (
        "verify",
        "num_samples 5, but the columns have 4",
        count("sft_packed", "num_samples", 5),
    ),
    "num_tokens": (
        "verify",
        "num_tokens 30, but the columns have 31",
        count("sft", "num_tokens", 30),
    ),
    "num_loss_tokens": (
        "verify",
        "num_loss_tokens 8, but the columns have 9",
        count("pairwise", "num_loss_tokens", 8),
    ),
    "wrong_bin_checksum": (
        "verify",
        "sha256",
        raw("pairwise", "packed_chosen_input_ids_document.bin", patched(0, "H", 80)),
    ),
    "wrong_idx_checksum": (
        "verify",
        "sha256",
        described(
            edited("sft", lambda made: None),
            lambda body: body["files"]["labels.idx"].update(sha256="0" * 64),
        ),
    ),
}


def make_golden(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, make in GOLDEN.items():
        write(folder / name, files_of(make()))
        made = make()
        rows = made["columns"] | ({"cu_seqlens": made["boundaries"]} if made["boundaries"] else {})
        (folder / name / "rows.json").write_text(json.dumps(rows) + "\n")


def make_broken(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for case, (_, _, make) in CASES.items():
        write(folder / case, make())
    found = {case: {"reader": who, "says": words} for case, (who, words, _) in CASES.items()}
    (folder / "cases.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def write(folder: Path, files: Files) -> None:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    make_golden(HERE / "golden")
    make_broken(HERE / "broken")
