"""MBPP's records and splits, as Austin et al. (2021) release them (google-research, folder mbpp).

Rows have the columns of google-research-datasets/mbpp on the hub: `full` of `mbpp.jsonl`, and
`sanitized` of `sanitized-mbpp.json`, whose problems people have checked by hand.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

DATASET = "google-research-datasets/mbpp"
FULL, SANITIZED = "full", "sanitized"
KEYS = ("task_id", "code", "test_list")
_COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        FULL: ("task_id", "text", "code", "test_list", "test_setup_code", "challenge_test_list"),
        SANITIZED: ("source_file", "task_id", "prompt", "code", "test_imports", "test_list"),
    }
)
# First and last task_id of each split: test by the release's README; it leaves 1-10 and 511 to the
# end for prompts and training, which the hub divides so.
_SPLITS = (("prompt", 1, 10), ("test", 11, 510), ("validation", 511, 600), ("train", 601, 974))


def row(record: Mapping[str, object], kind: str) -> dict[str, object]:
    """The columns of the hub; raises ValueError for what is not a problem of MBPP."""
    columns = _COLUMNS[kind]
    if missing := [key for key in columns if key not in record]:
        raise ValueError(f"no {', '.join(missing)}; found {', '.join(record)}")
    tests = record["test_list"]
    listed = cast("list[object]", tests) if isinstance(tests, list) else []
    if not listed or not all(isinstance(test, str) for test in listed):
        raise ValueError(f"test_list {tests!r}, want a list of assertions")
    split(record)
    return {key: record[key] for key in columns}


def split(record: Mapping[str, object]) -> str:
    """The split that a problem's number puts it in."""
    number = record["task_id"]
    if isinstance(number, int):
        for name, first, last in _SPLITS:
            if first <= number <= last:
                return name
    raise ValueError(f"task_id {number!r}, want a number from {_SPLITS[0][1]} to {_SPLITS[-1][2]}")
