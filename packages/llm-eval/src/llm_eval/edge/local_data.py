"""The local data folder that `import-data` writes: found by hub name, read with its checksums."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llm_eval.errors import EvalError

MANIFEST = "manifest.json"
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One file of rows."""

    name: str
    file: Path
    sha256: str
    num_rows: int


class LocalData:
    """Every data set under a folder; use `open`."""

    def __init__(self, root: Path, splits: Mapping[tuple[str, str | None], list[Split]]) -> None:
        self._root = root
        self._splits = splits

    @classmethod
    def open(cls, root: Path) -> "LocalData":
        """Read the manifests under `root`; raises EvalError where there is none."""
        manifests = sorted(root.glob(f"*/{MANIFEST}"))
        if not manifests:
            raise EvalError(
                f"--data {root}: no data here; import some: "
                f"llm-eval import-data mmlu data.tar --data {root}"
            )
        splits: dict[tuple[str, str | None], list[Split]] = {}
        for manifest in manifests:
            for keys, split in _entries(manifest):
                for key in keys:
                    splits.setdefault(key, []).append(split)
        return cls(root, splits)

    def digest(self) -> str:
        """Changes with any file of the folder."""
        listed = sorted({(str(s.file.relative_to(self._root)), s.sha256) for s in self._all()})
        return hashlib.sha256(repr(listed).encode()).hexdigest()

    def rows(self, dataset: str, config: str | None) -> dict[str, list[dict[str, object]]]:
        """The rows of each split of a data set, checked against the manifest."""
        key = (dataset, config)
        if key not in self._splits:
            name = dataset if config is None else f"{dataset} ({config})"
            held = ", ".join(sorted({known for known, _ in self._splits}))
            raise EvalError(
                f"--data {self._root}: no data set {name}; found {held}. Import its original "
                "distribution (llm-eval import-data --help) or leave out --data to use the hub"
            )
        return {split.name: _read(split) for split in self._splits[key]}

    def _all(self) -> list[Split]:
        return [split for found in self._splits.values() for split in found]


def _entries(manifest: Path) -> list[tuple[list[tuple[str, str | None]], Split]]:
    try:
        value = json.loads(manifest.read_bytes())
        if value["version"] != VERSION:
            raise EvalError(f"{manifest}: version {value['version']!r}, want {VERSION}")
        return [
            (
                [(name, item["config"]) for name in (item["dataset"], *item["also_known_as"])],
                Split(
                    name=item["split"],
                    file=manifest.parent / item["file"],
                    sha256=item["sha256"],
                    num_rows=item["rows"],
                ),
            )
            for item in value["datasets"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise EvalError(f"{manifest}: not a manifest of import-data ({error!r})") from None


def _read(split: Split) -> list[dict[str, object]]:
    if not split.file.is_file():
        raise EvalError(f"{split.file}: missing, though its manifest names it; import again")
    content = split.file.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != split.sha256:
        raise EvalError(
            f"{split.file}: SHA-256 {found[:12]}…, its manifest says {split.sha256[:12]}…; "
            "changed or damaged: import again with --overwrite"
        )
    # Not splitlines: a text may hold U+2028, which JSON leaves as it is.
    return [json.loads(line) for line in content.decode().split("\n") if line]
