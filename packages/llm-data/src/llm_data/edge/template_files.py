"""The chat template a user names: one that comes with the package, a file, or the tokenizer's."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import orjson

from llm_data.errors import DataError, FormatError, UsageError, did_you_mean, listed
from llm_data.templates import SpecialTokens, TemplateSource, library_names, library_template
from llm_data.templates.slots import compile_slots, read_entry
from llm_data.templates.source import THINK
from llm_data.tokenizer import token_text

HF = "hf"
_NAMING_FILES = ("tokenizer_config.json", "special_tokens_map.json")


def find_template(choice: str, *, tokenizer: Path, date: str | None = None) -> TemplateSource:
    """A library name, `hf` for the tokenizer folder's own template, or a file.

    A file is Jinja, or JSON with entries in MindSpeed-LLM's and LLaMA-Factory's fields; where that
    holds several, `FILE:NAME` says which. `date` is what a template that asks for today gets.
    """
    if choice in library_names():
        return library_template(choice)
    if choice == HF:
        return _foreign(HF, _tokenizer_template(_folder(tokenizer)), date)
    path, _, entry = choice.rpartition(":")
    if path and Path(path).is_file():
        return _from_file(Path(path), entry, date)
    if Path(choice).is_file():
        return _from_file(Path(choice), None, date)
    names = library_names()
    raise UsageError(
        f"--template {choice}: no such name and no such file{did_you_mean(choice, names)}; want "
        f"{HF}, a .jinja or .json file, or one of {listed(names, most=len(names))}"
    )


def read_special_tokens(tokenizer: Path) -> SpecialTokens:
    """The special tokens that a tokenizer's folder names; the later file fills the gaps."""
    found: dict[str, str] = {}
    folder = _folder(tokenizer)
    for name in _NAMING_FILES:
        if not (folder / name).is_file():
            continue
        body = _read_object(folder / name)
        for kind in ("bos", "eos", "pad", "unk"):
            text = token_text(body.get(f"{kind}_token"))
            if text is not None:
                found.setdefault(kind, text)
    return SpecialTokens(
        bos=found.get("bos"), eos=found.get("eos"), pad=found.get("pad"), unk=found.get("unk")
    )


def _folder(tokenizer: Path) -> Path:
    return tokenizer if tokenizer.is_dir() else tokenizer.parent


def _foreign(name: str, text: str, date: str | None) -> TemplateSource:
    takes_thoughts = "reasoning_content" in text or "message.thinking" in text
    return TemplateSource(
        name=name,
        text=text,
        marks=THINK if takes_thoughts else None,
        tools="its own" if "tool_call" in text else "",
        about="a template from outside",
        date=date,
    )


def _from_file(file: Path, entry: str | None, date: str | None) -> TemplateSource:
    if file.suffix == ".json":
        return _from_entries(file, entry)
    if entry is not None:
        raise UsageError(f"--template {file}:{entry}: only a .json file holds entries by name")
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{file}: not UTF-8 at byte {error.start}") from None
    return _foreign(file.name, text, date)


def _from_entries(file: Path, wanted: str | None) -> TemplateSource:
    """An entry of a file in MindSpeed-LLM's format, a list or a single object."""
    try:
        body: object = orjson.loads(file.read_bytes())
    except ValueError as error:
        raise FormatError(f"{file}: not JSON: {error}") from None
    entries = cast("list[object]", body) if isinstance(body, list) else [body]
    named: dict[str, Mapping[str, object]] = {}
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, Mapping):
            raise FormatError(f"{file}: entry {number} is not an object")
        fields = cast("Mapping[str, object]", entry)
        named[str(fields.get("name", file.stem))] = fields
    if wanted is None and len(named) > 1:
        raise UsageError(f"--template {file}: it holds {listed(named, most=40)}; want {file}:NAME")
    name = wanted or next(iter(named), "")
    if name not in named:
        raise UsageError(
            f"--template {file}:{name}: it holds {listed(named, most=40)}"
            f"{did_you_mean(name, named)}"
        )
    return compile_slots(read_entry(named[name], where=f"{file}: {name}"))


def _tokenizer_template(folder: Path) -> str:
    """`chat_template.jinja` if it is there, as transformers prefers it, else tokenizer_config's."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    config = folder / "tokenizer_config.json"
    found = _read_object(config).get("chat_template") if config.is_file() else None
    if isinstance(found, str):
        return found
    if isinstance(found, list):
        return _default_of(config, cast("list[object]", found))
    raise UsageError(
        f"--template {HF}: {folder} has no chat_template.jinja and no chat_template in "
        "tokenizer_config.json; want a name that `llm-data templates` lists, or a file"
    )


def _default_of(config: Path, entries: list[object]) -> str:
    texts: dict[str, str] = {}
    for entry in entries:
        if isinstance(entry, Mapping):
            fields = cast("Mapping[str, object]", entry)
            name, text = fields.get("name"), fields.get("template")
            if isinstance(name, str) and isinstance(text, str):
                texts[name] = text
    if "default" in texts:
        return texts["default"]
    raise UsageError(
        f"{config}: chat_template has {listed(texts)}, want one called 'default'; "
        "save the one you want as a .jinja file and name that"
    )


def _read_object(file: Path) -> dict[str, object]:
    try:
        body: object = orjson.loads(file.read_bytes())
    except ValueError as error:
        raise FormatError(f"{file}: not JSON: {error}") from None
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    if not isinstance(body, dict):
        raise FormatError(f"{file}: want a JSON object")
    return cast("dict[str, object]", body)
