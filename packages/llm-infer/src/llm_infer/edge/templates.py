"""Chat templates: a name of an installed library, or a Jinja file."""

import json
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, cast

from llm_infer.engine import Tokenizer, Tool
from llm_infer.errors import InferError
from llm_infer.sampling import Sampling

ENTRY_POINT_GROUP = "llm_infer.chat_templates"


class ChatTemplates(Protocol):
    """What an entry point of the group makes when it is called."""

    def names(self) -> Sequence[str]:
        """Every template there is."""
        ...

    def jinja(self, name: str) -> str:
        """The text of one, as transformers' `apply_chat_template` takes it."""
        ...

    def ends(self, name: str) -> Sequence[str]:
        """The tokens that end an answer, as texts; `eos_token` is the tokenizer's own."""
        ...


def chat_template(name_or_file: str) -> str:
    """Its Jinja text: the file where there is one, else the template of that name."""
    path = Path(name_or_file)
    if path.is_file():
        try:
            return path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise InferError(f"{path}: not UTF-8 text at byte {error.start}") from None
    libraries = _libraries()
    for library in libraries:
        if name_or_file in library.names():
            return library.jinja(name_or_file)
    raise InferError(f"template {name_or_file}: no such file, {_no_name(name_or_file, libraries)}")


def template_ends(name_or_file: str) -> Sequence[str]:
    """What ends answers, beside the text of a template of that name; nothing for a file."""
    if Path(name_or_file).is_file():
        return ()
    known = (library for library in _libraries() if name_or_file in library.names())
    return next((library.ends(name_or_file) for library in known), ())


def ended_by(sampling: Sampling, ends: Sequence[str], tokenizer: Tokenizer) -> Sampling:
    """Settings with which these end an answer, too.

    One that the tokenizer has no token for ends it as a text, as the model was taught it then.
    """
    tokens, texts = list[int](), list[str]()
    for end in ends:
        token = tokenizer.end_token if end == "eos_token" else tokenizer.token(end)
        if token is not None:
            tokens.append(token)
        elif end != "eos_token":
            texts.append(end)
    return replace(
        sampling,
        end_tokens=(*sampling.end_tokens, *tokens),
        stop=(*sampling.stop, *texts),
    )


def read_tools(path: Path) -> list[Tool]:
    """The tools of a JSON file, which has a list as OpenAI's API takes it."""
    if not path.is_file():
        raise InferError(f"{path}: no such file; want a JSON list of tools")
    try:
        found: object = json.loads(path.read_bytes())
    except ValueError as error:
        raise InferError(f"{path}: not JSON ({error})") from None
    tools = cast("list[object]", found) if isinstance(found, list) else []
    if not tools or not all(isinstance(tool, dict) for tool in tools):
        raise InferError(f"{path}: want a JSON list of tools, each an object")
    # With pydantic, which takes a while to import.
    from llm_infer.openai_api.errors import ApiError
    from llm_infer.openai_api.tool_requests import check_tool

    found_tools = cast("list[Tool]", tools)
    try:
        for number, tool in enumerate(found_tools):
            check_tool(tool, f"tools.{number}")
    except ApiError as error:
        raise InferError(f"{path}: {error}") from None
    return found_tools


def _libraries() -> list[ChatTemplates]:
    return [entry.load()() for entry in entry_points(group=ENTRY_POINT_GROUP)]


def _no_name(name: str, libraries: Sequence[ChatTemplates]) -> str:
    if not libraries:
        return "and no library of templates is installed; pip install llm-data has one"
    names = [known for library in libraries for known in library.names()]
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    return f"and no template of that name: {hint}"
