"""A token dataset on disk, checked before a run starts.

Contract: tests/contracts/token_dataset/SPEC.md.
"""

import json
import struct
from pathlib import Path

from llm_train.dataset import DatasetFacts

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 8, 7: 4, 8: 2}
DTYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float64",
    7: "float32",
    8: "uint16",
}


class DataError(ValueError):
    """A token dataset that is missing, cut short or not one."""


def read_facts(prefix: Path) -> DatasetFacts:
    """Check that `prefix`.bin and .idx are whole and agree, and read the manifest if there is one.

    Raises DataError naming the file, what was found and what was wanted.
    """
    index, tokens = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    for path in (index, tokens):
        if not path.is_file():
            raise DataError(f"{path}: no such file{_neighbours(prefix)}")
    sequences, item_bytes = _read_header(index)
    _check_bin_size(index, tokens, sequences, item_bytes)
    manifest = _read_manifest(Path(f"{prefix}.json"))
    tokenizer = manifest.get("tokenizer")
    tokenizer = tokenizer if isinstance(tokenizer, dict) else {}
    _check_manifest_sizes(manifest, prefix)
    return DatasetFacts(
        sequences=sequences,
        tokens=tokens.stat().st_size // item_bytes,
        tokenizer_digest=tokenizer.get("digest"),
        vocab_size=tokenizer.get("vocab_size"),
        eos_id=tokenizer.get("eos_id"),
    )


def _neighbours(prefix: Path) -> str:
    found = sorted(path.with_suffix("").name for path in prefix.parent.glob("*.idx"))
    if found:
        return f"; datasets in {prefix.parent}: {', '.join(found[:5])}"
    return f"; {prefix.parent} holds no dataset (llm-data preprocess makes one)"


def _read_header(index: Path) -> tuple[int, int]:
    """Number of sequences and bytes a token; the file is as long as it says."""
    sequences, _, code = _unpack_header(index)
    if sequences == 0:
        raise DataError(f"{index}: holds no sequence")
    return sequences, ITEM_BYTES[code]


def read_index(index: Path) -> tuple[int, int, str]:
    """Sequences, boundaries of documents (one more than there are) and numpy's name of the type.

    Raises DataError unless the file is as long as it says.
    """
    sequences, documents, code = _unpack_header(index)
    return sequences, documents, DTYPES[code]


def _unpack_header(index: Path) -> tuple[int, int, int]:
    with index.open("rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        raise DataError(f"{index}: found {len(head)} bytes, want at least {HEADER.size}")
    magic, version, code, sequences, documents = HEADER.unpack(head)
    if magic != MAGIC:
        raise DataError(f"{index}: magic {magic!r}, want {MAGIC!r}")
    if version != 1 or code not in ITEM_BYTES:
        raise DataError(
            f"{index}: version {version}, dtype code {code}; want version 1 and a code of "
            f"{sorted(ITEM_BYTES)}"
        )
    wanted = HEADER.size + sequences * (4 + 8) + documents * 8
    if (found := index.stat().st_size) < wanted:
        raise DataError(f"{index}: found {found} bytes, want {wanted}: the file is cut short")
    return sequences, documents, code


def _check_bin_size(index: Path, tokens: Path, sequences: int, item_bytes: int) -> None:
    with index.open("rb") as file:
        file.seek(HEADER.size + (sequences - 1) * 4)
        (length,) = struct.unpack("<i", file.read(4))
        file.seek(HEADER.size + sequences * 4 + (sequences - 1) * 8)
        (pointer,) = struct.unpack("<q", file.read(8))
    wanted, found = pointer + length * item_bytes, tokens.stat().st_size
    if found != wanted:
        raise DataError(f"{tokens}: found {found} bytes, want {wanted} as {index.name} says")


def _read_manifest(path: Path) -> dict[str, object]:
    """The manifest, or nothing: a dataset made by Megatron-LM has none."""
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != "token-dataset":
        raise DataError(f"{path}: not a token-dataset manifest")
    return manifest


def _check_manifest_sizes(manifest: dict[str, object], prefix: Path) -> None:
    files = manifest.get("files")
    if not isinstance(files, dict):
        return
    for kind in ("bin", "idx"):
        facts, path = files.get(kind), Path(f"{prefix}.{kind}")
        wanted = facts.get("bytes") if isinstance(facts, dict) else None
        if isinstance(wanted, int) and path.stat().st_size != wanted:
            raise DataError(
                f"{path}: found {path.stat().st_size} bytes, "
                f"want {wanted} as {prefix.name}.json says"
            )
