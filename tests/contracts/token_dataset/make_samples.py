"""Makes golden/ and broken/ of the token dataset: `python make_samples.py`.

golden/ holds a tokenizer without merges, so that a document's ids can be told by hand: 0 and 1
are special, 2 to 257 are the bytes in the order of the byte-level alphabet.
"""

import contextlib
import hashlib
import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
STEM = "tiny_text_document"
TEXTS = ("Hello", "héllo\n", "日本")

# Offsets in the golden index: three sequences, three documents.
LENGTHS, POINTERS, DOCUMENTS = 34, 34 + 12, 34 + 12 + 24

Pair = dict[str, bytes]


def patched(data: bytes, at: int, kind: str, value: int) -> bytes:
    out = bytearray(data)
    struct.pack_into("<" + kind, out, at, value)
    return bytes(out)


def index(at: int, kind: str, value: int) -> Callable[[Pair], Pair]:
    return lambda golden: {**golden, "idx": patched(golden["idx"], at, kind, value)}


def resized(part: str, change: Callable[[bytes], bytes]) -> Callable[[Pair], Pair]:
    return lambda golden: {**golden, part: change(golden[part])}


def manifest(change: Callable[[dict], object]) -> Callable[[Pair], Pair]:
    def broken(golden: Pair) -> Pair:
        body = json.loads(golden["json"])
        change(body)
        return {**golden, "json": (json.dumps(body, indent=2) + "\n").encode()}

    return broken


def out_of_vocabulary(golden: Pair) -> Pair:
    """A token that does not exist, in a file whose checksum is right."""
    data = patched(golden["bin"], 2, "H", 258)
    return manifest(
        lambda body: body["files"]["bin"].update(sha256=hashlib.sha256(data).hexdigest())
    )({**golden, "bin": data})


def float_tokens(golden: Pair) -> Pair:
    """A pair that is whole, of ten float32."""
    lengths = struct.pack("<3i", 3, 3, 4)
    pointers = struct.pack("<3q", 0, 12, 24)
    idx = golden["idx"]
    return {
        **golden,
        "idx": patched(idx[:LENGTHS], 17, "B", 7) + lengths + pointers + idx[DOCUMENTS:],
        "bin": bytes(40),
    }


# case: (who must find it, words of the message, how it is made)
CASES: dict[str, tuple[str, str, Callable[[Pair], Pair]]] = {
    "bad_magic": ("open", "magic", index(0, "B", 0x50)),
    "wrong_version": ("open", "version 2, want 1", index(9, "Q", 2)),
    "unknown_dtype": ("open", "dtype code 9", index(17, "B", 9)),
    "float_dtype": ("open", "float32, want an integer", float_tokens),
    "empty_idx": ("open", "magic", resized("idx", lambda data: b"")),
    "short_header": (
        "open",
        "20 bytes, want a header of 34",
        resized("idx", lambda data: data[:20]),
    ),
    "truncated_idx": ("open", "want 102", resized("idx", lambda data: data[:-1])),
    "surplus_idx": ("open", "103 bytes", resized("idx", lambda data: data + b"\0")),
    "huge_count": ("open", "want", index(18, "Q", 1 << 40)),
    "truncated_bin": ("open", "wants", resized("bin", lambda data: data[:-1])),
    "surplus_bin": ("open", "wants", resized("bin", lambda data: data + b"\0\0")),
    "first_document": ("open", "start with", index(DOCUMENTS, "q", 1)),
    "last_document": ("open", "ends at sequence 2, want 3", index(DOCUMENTS + 24, "q", 2)),
    "documents_backwards": ("verify", "must not decrease", index(DOCUMENTS + 8, "q", 3)),
    "pointers_out_of_order": ("verify", "must lie end to end", index(POINTERS + 8, "q", 0)),
    "pointers_not_covering": ("verify", "sequence 0 starts at byte 2", index(POINTERS, "q", 2)),
    "negative_length": ("verify", "length -5, want ≥ 0", index(LENGTHS, "i", -5)),
    "wrong_bin_checksum": (
        "verify",
        "sha256",
        lambda golden: {**golden, "bin": patched(golden["bin"], 0, "H", 7)},
    ),
    "wrong_idx_checksum": (
        "verify",
        "sha256",
        manifest(lambda body: body["files"]["idx"].update(sha256="0" * 64)),
    ),
    "out_of_vocabulary": ("verify", "token 1 is 258, want 0 to 257", out_of_vocabulary),
    "manifest_not_json": ("open", "not JSON", resized("json", lambda data: data[:-40])),
    "manifest_format": (
        "open",
        "want 'token-dataset'",
        manifest(lambda b: b.update(format="arch")),
    ),
    "manifest_version": ("open", "version 2, want 1", manifest(lambda b: b.update(version=2))),
    "manifest_unknown_key": (
        "open",
        "'num_token'; did you mean 'num_tokens'?",
        manifest(lambda b: b.update(num_token=b.pop("num_tokens"))),
    ),
    "manifest_missing_key": ("open", "no key 'eod_id'", manifest(lambda b: b.pop("eod_id"))),
    "manifest_wrong_type": (
        "open",
        "'3', want an integer",
        manifest(lambda b: b.update(num_documents="3")),
    ),
    "manifest_dtype": ("verify", "dtype int32", manifest(lambda b: b.update(dtype="int32"))),
    "manifest_documents": (
        "verify",
        "num_documents 4, but the index has 3",
        manifest(lambda b: b.update(num_documents=4)),
    ),
    "manifest_tokens": (
        "verify",
        "num_tokens 20, but the index has 21",
        manifest(lambda b: b.update(num_tokens=20)),
    ),
}


def byte_ids(text: str) -> list[int]:
    """A text's ids by GPT-2's published order of bytes: printable ones first, then the others."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    order = printable + [byte for byte in range(256) if byte not in printable]
    return [2 + order.index(byte) for byte in text.encode()]


def make_golden(folder: Path) -> None:
    from llm_data.config import PreprocessConfig, TrainingConfig
    from llm_data.edge.runs.pipeline import preprocess
    from llm_data.edge.tokenizer_training import train_tokenizer

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    source, tokenizer = Path("corpus.jsonl"), Path("tokenizer")
    with contextlib.chdir(folder):
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
        Path("documents.json").write_text(f"{[[*byte_ids(text), 0] for text in TEXTS]}\n")
        train_tokenizer(TrainingConfig(inputs=[source], output=tokenizer, vocab_size=258))
        preprocess(
            PreprocessConfig(
                inputs=[source], tokenizer=tokenizer, output=Path("tiny"), append_eod=True
            )
        )


def make_broken(folder: Path, golden: Path) -> None:
    pair = {end: (golden / f"{STEM}.{end}").read_bytes() for end in ("bin", "idx", "json")}
    for case, (_, _, change) in CASES.items():
        (folder / case).mkdir(parents=True, exist_ok=True)
        for end, data in change(pair).items():
            (folder / case / f"{STEM}.{end}").write_bytes(data)
    found = {case: {"reader": who, "says": words} for case, (who, words, _) in CASES.items()}
    (folder / "cases.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    if "--broken-only" not in sys.argv:
        make_golden(HERE / "golden")
    make_broken(HERE / "broken", HERE / "golden")
