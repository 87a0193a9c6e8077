"""Tokenizers of Hugging Face folders as llm-infer's `Tokenizer`, with and without transformers."""

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llm_infer.edge import tokenizer_file
from llm_infer.edge.model_folder import check_size, load_tokenizer
from llm_infer.edge.tokenizer_file import TokenizerFile
from llm_infer.engine import NO_VARIABLES, Message, Tokenizer, Tool
from llm_infer.errors import InferError
from llm_infer.unicode_text import require_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PYTHON_FAULTS = (
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
)
"""What a template's expressions may raise, as those of any program."""


class FolderTokenizer(Tokenizer, Protocol):
    """What a model folder's tokenizer tells besides."""

    def serialized(self) -> str | None:
        """As tokenizer.json, added tokens included; None for a tokenizer that has no such form."""
        ...


def read_tokenizer(folder: Path, *, num_rows: int) -> FolderTokenizer:
    """The folder's tokenizer, for a model with `num_rows` rows in its embedding.

    It is read from its files where that gives what transformers gives, which is not imported then.
    """
    found = tokenizer_file.read(folder)
    if found is None:
        return HfTokenizer(load_tokenizer(folder, num_rows=num_rows), num_rows=num_rows)
    check_size(folder, found.core.get_vocab_size(with_added_tokens=False), num_rows=num_rows)
    return FileTokenizer(found, num_rows=num_rows)


class FileTokenizer:
    """tokenizer.json through the tokenizers library."""

    def __init__(self, found: TokenizerFile, *, num_rows: int) -> None:
        """`num_rows` of the model's embedding: tokens beyond are refused."""
        self._num_rows = num_rows
        self._core, self._special_tokens = found.core, found.special_tokens
        self._templates = found.templates
        self._special = _special(found.core.get_added_tokens_decoder())

    @property
    def has_chat_template(self) -> bool:
        """Whether the folder brought a chat template."""
        return bool(self._templates)

    @property
    def vocab_size(self) -> int:
        """Added tokens included."""
        return min(self._core.get_vocab_size(with_added_tokens=True), self._num_rows)

    @property
    def end_token(self) -> int | None:
        """See `Tokenizer`."""
        name = self._special_tokens.get("eos_token")
        return None if name is None else self._core.token_to_id(name)

    def token(self, text: str) -> int | None:
        """See `Tokenizer`."""
        return self._core.token_to_id(text)

    def serialized(self) -> str | None:
        """See `FolderTokenizer`."""
        return self._core.to_str()

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt."""
        found = self._core.encode(require_text(text, where="the prompt"))
        return _with_rows(found.ids, self._num_rows, self._core.id_to_token)

    def encode_chat(
        self,
        messages: Sequence[Message],
        template: str | None,
        *,
        tools: Sequence[Tool] | None = None,
        variables: Mapping[str, object] = NO_VARIABLES,
    ) -> list[int]:
        """Tokens of a conversation up to where the answer starts."""
        # Not needed before the first conversation, and Jinja takes a while to import.
        from jinja2 import TemplateError

        from llm_infer.edge.chat_template import render

        source = self.chat_template(template, has_tools=tools is not None)
        _check_tools(source, tools)
        try:
            text = render(
                source,
                messages,
                tools=tools,
                special_tokens=self._special_tokens,
                variables=variables,
            )
        except TemplateError as error:
            raise InferError(f"chat template: {error}") from error
        except PYTHON_FAULTS as error:
            raise InferError(f"chat template: {type(error).__name__}: {error}") from error
        written = require_text(text, where="the conversation")
        found = self._core.encode(written, add_special_tokens=False)
        return _with_rows(found.ids, self._num_rows, self._core.id_to_token)

    def decode(self, tokens: Sequence[int], *, keeps: Collection[str] = ()) -> str:
        """Text without special tokens but those in `keeps`, spaces left as they are."""
        if not keeps:
            return self._core.decode(list(tokens), skip_special_tokens=True)
        kept = _without(self._special, tokens, keeps)
        return self._core.decode(kept, skip_special_tokens=False)

    def chat_template(self, given: str | None, *, has_tools: bool) -> str:
        """The Jinja text to use: what was given, else the folder's."""
        if given is not None:
            return self._templates.get(given, given)
        if has_tools and "tool_use" in self._templates:
            return self._templates["tool_use"]
        if "default" not in self._templates:
            names = ", ".join(self._templates) or "none"
            raise InferError(f"chat template: the folder has no default one; it has {names}")
        return self._templates["default"]


class HfTokenizer:
    """A tokenizer of transformers: encodes with the special tokens the model wants."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, num_rows: int) -> None:
        """`num_rows` of the model's embedding: tokens beyond are refused."""
        self._tokenizer, self._num_rows = tokenizer, num_rows
        self._special = _special(tokenizer.added_tokens_decoder)

    @property
    def has_chat_template(self) -> bool:
        """Whether the folder brought a chat template."""
        return self._tokenizer.chat_template is not None

    @property
    def vocab_size(self) -> int:
        """Added tokens included."""
        return min(len(self._tokenizer), self._num_rows)

    @property
    def end_token(self) -> int | None:
        """See `Tokenizer`."""
        found = self._tokenizer.eos_token_id
        return found if isinstance(found, int) else None

    def token(self, text: str) -> int | None:
        """See `Tokenizer`."""
        return self._tokenizer.get_vocab().get(text)

    def serialized(self) -> str | None:
        """See `FolderTokenizer`."""
        backend: Any = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        plain = copy(backend)
        plain.no_padding()
        plain.no_truncation()
        return plain.to_str()

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt."""
        return self._checked(self._tokenizer.encode(require_text(text, where="the prompt")))

    def encode_chat(
        self,
        messages: Sequence[Message],
        template: str | None,
        *,
        tools: Sequence[Tool] | None = None,
        variables: Mapping[str, object] = NO_VARIABLES,
    ) -> list[int]:
        """Tokens of a conversation up to where the answer starts."""
        from jinja2 import TemplateError

        given: Any = None if tools is None else [dict(tool) for tool in tools]
        told: dict[str, Any] = dict(variables)
        _check_tools(self.chat_template(template, has_tools=given is not None), given)
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=given,
                chat_template=template,
                add_generation_prompt=True,
                tokenize=False,
                **told,
            )
        except TemplateError as error:
            raise InferError(f"chat template: {error}") from error
        except PYTHON_FAULTS as error:
            raise InferError(f"chat template: {type(error).__name__}: {error}") from error
        written = require_text(str(text), where="the conversation")
        return self._checked(self._tokenizer.encode(written, add_special_tokens=False))

    def chat_template(self, given: str | None, *, has_tools: bool) -> str:
        """The Jinja text to use, as transformers chooses it."""
        tools: Any = [{}] if has_tools else None
        try:
            return str(self._tokenizer.get_chat_template(given, tools))
        except ValueError as error:
            raise InferError(f"chat template: {error}") from error

    def decode(self, tokens: Sequence[int], *, keeps: Collection[str] = ()) -> str:
        """Text without special tokens but those in `keeps`, spaces left as they are."""
        if keeps:
            tokens = _without(self._special, tokens, keeps)
        return str(
            self._tokenizer.decode(
                list(tokens),
                skip_special_tokens=not keeps,
                clean_up_tokenization_spaces=False,
            )
        )

    def _checked(self, tokens: Sequence[int]) -> list[int]:
        name_of: Any = self._tokenizer.convert_ids_to_tokens
        return _with_rows(tokens, self._num_rows, name_of)


def _with_rows(
    tokens: Sequence[int], num_rows: int, name_of: Callable[[int], str | None]
) -> list[int]:
    """The tokens; raises for one that the model has no embedding of."""
    strays = [token for token in tokens if token >= num_rows]
    if strays:
        raise InferError(
            f"the prompt: token {name_of(strays[0])!r} ({strays[0]}) has no row in the model's "
            f"embedding of {num_rows}"
        )
    return list(tokens)


def _special(added: Mapping[int, Any]) -> dict[int, str]:
    return {number: token.content for number, token in added.items() if token.special}


def _without(
    special: Mapping[int, str], tokens: Sequence[int], keeps: Collection[str]
) -> list[int]:
    return [token for token in tokens if token not in special or special[token] in keeps]


def _check_tools(template: str, tools: Sequence[Tool] | None) -> None:
    if tools is not None and "tools" not in template:
        raise InferError("chat template: it says nothing of tools; leave them out")
