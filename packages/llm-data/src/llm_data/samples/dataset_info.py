"""Entries of LLaMA-Factory's dataset_info.json."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from llm_data.errors import FormatError, UsageError, did_you_mean, listed
from llm_data.records import kind_of
from llm_data.samples.columns import AlpacaColumns, ChatColumns, Format, columns_of
from llm_data.samples.values import Body, is_object

# Columns that LLaMA-Factory reads only where an entry names them.
_ONLY_IF_NAMED = frozenset({"system", "history", "tools"})
_MEDIA = ("images", "videos", "audios")
_NOT_READ: Mapping[str, str] = MappingProxyType(
    {
        "script_url": "datasets no longer runs scripts; convert to parquet or jsonl",
        "ms_hub_url": "download it from ModelScope and name its files in file_name",
        "cloud_file_name": "download it and name its files in file_name",
        "num_samples": "every record is read; llm-data split takes a part of a dataset",
    }
)
_KNOWN = frozenset(
    {"file_name", "hf_hub_url", "formatting", "ranking", "subset", "split", "folder"}
    | {"columns", "tags"}
    | _NOT_READ.keys()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetEntry:
    """Where a dataset is and how its records read. Either `file` or `hub` is given.

    `file` is a file or folder beside the dataset_info.json, `hub` a repository of Hugging Face with
    `subset`, `split` and `folder` in it. `map_keys` are those of the format.
    """

    name: str
    file: str | None
    hub: str | None
    format: Format
    map_keys: Mapping[str, object]
    is_ranking: bool
    subset: str | None
    split: str | None
    folder: str | None


def find_entry(info: Body, name: str) -> DatasetEntry:
    """The entry of a name; UsageError if it is not there or asks for what is not done here."""
    if name not in info:
        raise UsageError(f"no dataset {name!r}; it has {listed(info)}{did_you_mean(name, info)}")
    body = info[name]
    if not is_object(body):
        raise FormatError(f"{name}: {kind_of(body)}, want an object")
    for key in body:
        if key not in _KNOWN:
            raise UsageError(
                f"{name}: unknown key {key!r}, want {listed(sorted(_KNOWN), most=20)}"
                f"{did_you_mean(key, _KNOWN)}"
            )
    for key, why in _NOT_READ.items():
        if body.get(key) is not None:
            raise UsageError(f"{name}: {key} is not supported: {why}")
    record_format = _format(body, name)
    hub = _text(body, "hf_hub_url", name)
    file = None if hub else _text(body, "file_name", name)
    if not hub and not file:
        raise UsageError(f"{name}: neither file_name nor hf_hub_url; it has {listed(body)}")
    inside = {key: _text(body, key, name) for key in ("subset", "split", "folder")}
    if file:
        inside = _of_file(inside, name)
    return DatasetEntry(
        name=name,
        file=file,
        hub=hub,
        format=record_format,
        map_keys=_map_keys(body, name, record_format),
        is_ranking=_ranking(body, name),
        **inside,
    )


def _of_file(inside: dict[str, str | None], name: str) -> dict[str, str | None]:
    """What an entry may say of a file: the split that all files are."""
    for key, value in inside.items():
        if value is not None and (key, value) != ("split", "train"):
            raise UsageError(
                f"{name}: {key} {value!r} has no meaning for file_name, only for hf_hub_url"
            )
    return dict.fromkeys(inside)


def _format(body: Body, name: str) -> Format:
    formats = {each.value: each for each in (Format.ALPACA, Format.SHAREGPT, Format.OPENAI)}
    word = _text(body, "formatting", name) or Format.ALPACA.value
    if word not in formats:
        raise UsageError(
            f"{name}: formatting {word!r}, want {listed(formats)}{did_you_mean(word, formats)}"
        )
    return formats[word]


def _map_keys(body: Body, name: str, record_format: Format) -> Mapping[str, object]:
    columns = _object(body, "columns", name)
    media = [key for key in _MEDIA if columns.get(key)]
    if media:
        raise UsageError(f"{name}: the columns {listed(media)} are not text, samples are text only")
    kind = AlpacaColumns if record_format is Format.ALPACA else ChatColumns
    known = {field.name for field in fields(kind)}
    found: dict[str, object] = dict.fromkeys(sorted(_ONLY_IF_NAMED & known), "")
    found |= {key: column for key, column in columns.items() if key not in _MEDIA}
    if body.get("tags") is not None:
        found["tags"] = dict(_object(body, "tags", name))
    try:
        columns_of(record_format, found)
    except UsageError as error:
        raise UsageError(f"{name}: {str(error).removeprefix('--map-keys: ')}") from None
    return found


def _ranking(body: Body, name: str) -> bool:
    value = body.get("ranking")
    if value is not None and not isinstance(value, bool):
        raise FormatError(f"{name}: ranking is {kind_of(value)}, want true or false")
    return bool(value)


def _text(body: Body, key: str, name: str) -> str | None:
    value = body.get(key)
    if value is not None and not isinstance(value, str):
        raise FormatError(f"{name}: {key} is {kind_of(value)}, want a string")
    return value or None


def _object(body: Body, key: str, name: str) -> Body:
    value = body.get(key)
    if value is None:
        return {}
    if not is_object(value):
        raise FormatError(f"{name}: {key} is {kind_of(value)}, want an object")
    return value
