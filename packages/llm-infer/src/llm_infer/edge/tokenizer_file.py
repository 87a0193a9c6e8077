"""tokenizer.json and what lies beside it, read as transformers 5 reads it, without its import.

`read` gives None for what only transformers itself can read: slow tokenizers, the authors' own
code, classes of transformers that do not take the file as it is, and files of old layouts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from llm_infer.edge.tokenizer_recipes import is_as_in_file
from llm_infer.errors import InferError

_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# Keys of tokenizer_config.json that let transformers do more than is done here.
_FOREIGN = ("auto_map", "fast_tokenizer_files", "fix_mistral_regex", "init_inputs")
# Read by transformers where tokenizer_config.json does not list the added tokens.
_OLD_FILES = ("special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFile:
    """A tokenizer, and what chat templates need."""

    core: Tokenizer
    special_tokens: Mapping[str, str]
    """By name (`bos_token` …), as templates see them."""
    templates: Mapping[str, str]
    """Jinja text by name; a folder's only one is `default`."""


def read(folder: Path) -> TokenizerFile | None:
    """What a folder holds; None where transformers has to read it. InferError for broken files."""
    paths = (folder / "tokenizer.json", folder / "tokenizer_config.json")
    if not all(path.is_file() for path in paths):
        return None
    config = _read_object(paths[1])
    if any(key in config for key in _FOREIGN) or not _is_new_layout(folder, config):
        return None
    text = paths[0].read_text(encoding="utf-8")
    try:
        core = Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001  the library raises no narrower one
        raise InferError(f"{paths[0]}: not a tokenizer ({error})") from None
    model_type = _model_type(folder)
    if not is_as_in_file(core, config, model_type=model_type, has_bytes='"ByteLevel"' in text):
        return None
    core.no_padding()
    core.no_truncation()
    core.encode_special_tokens = bool(config.get("split_special_tokens"))
    named = _add_tokens(core, config)
    return TokenizerFile(
        core=core,
        special_tokens={name: _content(token) for name, token in named.items()},
        templates=_templates(folder, config),
    )


def _is_new_layout(folder: Path, config: Mapping[str, Any]) -> bool:
    lists_added = "added_tokens_decoder" in config
    return lists_added or not any((folder / name).is_file() for name in _OLD_FILES)


def _model_type(folder: Path) -> str | None:
    path = folder / "config.json"
    return _read_object(path).get("model_type") if path.is_file() else None


def _add_tokens(core: Tokenizer, config: Mapping[str, Any]) -> dict[str, AddedToken | str]:
    """Add what the configuration names and the file lacks; the named special tokens.

    Tokens that the tokenizer knows already stay as the file has them.
    """
    stored = config.get("added_tokens_decoder")
    listed = {
        int(number): AddedToken(**token) for number, token in (stored or {}).items()
    } or core.get_added_tokens_decoder()
    by_content = {token.content: token for token in listed.values()}
    named: dict[str, AddedToken | str] = {
        name: by_content.get(_content(token), token) if name in _NAMED else token
        for name, token in _named(config).items()
    }
    wanted = [listed[number] for number in sorted(listed)]
    known = {token.content for token in (*core.get_added_tokens_decoder().values(), *wanted)}
    for token in (*named.values(), *map(_as_token, _extra(config))):
        if _content(token) not in known:
            known.add(_content(token))
            wanted.append(AddedToken(token, special=True) if isinstance(token, str) else token)
    for token in wanted:
        token.special = token.special or token.content in map(_content, named.values())
    core.add_tokens(wanted)
    return named


def _named(config: Mapping[str, Any]) -> dict[str, AddedToken | str]:
    """Special tokens with a name: the usual ones in their order, then the model's own."""
    found = {name: _as_token(config[name]) for name in _NAMED if config.get(name) is not None}
    own = {
        key: value
        for key, value in config.items()
        if key.endswith("_token") and key not in _NAMED and isinstance(value, str | dict)
    }
    extra = config.get("extra_special_tokens")
    if isinstance(extra, dict):
        own |= extra
    return found | {key: _as_token(value) for key, value in own.items()}


def _extra(config: Mapping[str, Any]) -> Sequence[Any]:
    """Special tokens without a name."""
    found = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
    return () if isinstance(found, dict) else found


def _as_token(value: Any) -> AddedToken | str:
    """A token as tokenizer_config.json has it: text, or text with its settings."""
    if isinstance(value, dict):
        return AddedToken(**{key: one for key, one in value.items() if key != "__type"})
    return value


def _content(token: AddedToken | str) -> str:
    return token if isinstance(token, str) else token.content


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Files of their own go before tokenizer_config.json."""
    files = {"default": folder / "chat_template.jinja"}
    more = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    files |= {path.name.removesuffix(".jinja"): path for path in more}
    found = {
        name: path.read_text(encoding="utf-8") for name, path in files.items() if path.is_file()
    }
    if found:
        return found
    stored = config.get("chat_template")
    if isinstance(stored, list):
        return {one["name"]: one["template"] for one in stored}
    return {} if stored is None else {"default": stored}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise InferError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise InferError(f"{path}: found {type(found).__name__}, want a JSON object")
    return found
