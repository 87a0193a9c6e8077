"""Which backend a run uses: the fast one only where it is seen to give the reference's ids."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from llm_data.backends.backend import Backend, BackendName, BackendSpec, TokenIds
from llm_data.backends.hard_texts import hard_texts
from llm_data.backends.memory import give_back_memory
from llm_data.config import BackendChoice
from llm_data.errors import DataError, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Texts to the ids of each.
Ask: TypeAlias = Callable[[Sequence[str]], Sequence[TokenIds]]

# Added tokens that are tried; a vocabulary may have thousands of reserved ones.
_MOST_ADDED_TOKENS = 64
_SHOWN_CHARACTERS = 24
_PROBE = "a"
_LIBRARIES = MappingProxyType({BackendName.HF: "tokenizers", BackendName.GIGATOKEN: "gigatoken"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The backend of a whole run, and a line for the user that says why."""

    spec: BackendSpec
    message: str


def is_installed(name: BackendName) -> bool:
    """Whether the backend's library can be found, without importing it."""
    return find_spec(_LIBRARIES[name]) is not None


def choose(
    choice: BackendChoice, *, tokenizer_file: Path, texts: Sequence[str], ask: Ask | None = None
) -> Chosen:
    """The backend for a run whose first documents are `texts`.

    `auto` is gigatoken where that is installed and gives hf's ids, else hf and why; `gigatoken`
    is that or an error. Both tokenizers are loaded for the comparison, and gone after it; with
    `ask` it is another process that loads gigatoken, at the same time.
    """
    if choice == "hf":
        return Chosen(spec=BackendSpec(), message="tokenizer backend: hf")
    found = _doubt_or_spec(tokenizer_file, texts, ask)
    give_back_memory()
    if isinstance(found, BackendSpec):
        message = (
            f"tokenizer backend: gigatoken; the same ids as hf in {len(texts)} of the run's "
            "documents and in a fixed set of hard texts"
        )
        return Chosen(spec=found, message=message)
    if choice == "gigatoken":
        raise found
    return Chosen(spec=BackendSpec(), message=f"tokenizer backend: hf, because {found}")


def _doubt_or_spec(file: Path, texts: Sequence[str], ask: Ask | None) -> BackendSpec | DataError:
    """How to load gigatoken, or why not to."""
    from llm_data.backends.hf import HfBackend

    if not is_installed(BackendName.GIGATOKEN):
        return UsageError("gigatoken is not installed; pip install gigatoken")
    reference = HfBackend(file)
    added = [token.content for token in reference.tokenizer.get_added_tokens_decoder().values()]
    compared = {
        "the hard text": hard_texts(added[:_MOST_ADDED_TOKENS]),
        "the run's document": texts,
    }
    try:
        spec = _wrapped_as(reference.tokenizer)
        encode = spec.load(file).encode if ask is None else _wrapping(ask, spec)
        for what, some in compared.items():
            if difference := _first_difference(reference, encode, some, what=what):
                return DataError(f"{file}: gigatoken does not give hf's ids: {difference}")
    except DataError as error:
        return error
    return spec


def _wrapping(ask: Ask, spec: BackendSpec) -> Ask:
    """`ask` of a process that adds no special tokens, and the special tokens."""

    def encode(texts: Sequence[str], /) -> list[TokenIds]:
        return [(*spec.before, *ids, *spec.after) for ids in ask(texts)]

    return encode


def _wrapped_as(tokenizer: "Tokenizer") -> BackendSpec:
    """The fast backend with the special tokens that the post-processor puts around a text."""
    bare = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    whole = tokenizer.encode(_PROBE, add_special_tokens=True).ids
    for start in range(len(whole) - len(bare) + 1):
        end = start + len(bare)
        if bare and whole[start:end] == bare:
            before, after = tuple(whole[:start]), tuple(whole[end:])
            return BackendSpec(name=BackendName.GIGATOKEN, before=before, after=after)
    raise DataError(
        f"the post-processor makes {whole} of {bare}: want special tokens before and after only"
    )


def _first_difference(
    reference: Backend, encode: Ask, texts: Sequence[str], *, what: str
) -> str | None:
    pairs = zip(reference.encode(texts), encode(texts), strict=True)
    for number, (want, found) in enumerate(pairs):
        if list(want) != list(found):
            at = next(
                (
                    i
                    for i, (one, other) in enumerate(zip(want, found, strict=False))
                    if one != other
                ),
                min(len(want), len(found)),
            )
            shown = texts[number][:_SHOWN_CHARACTERS]
            return (
                f"{what} {number} ({shown!r}…), from token {at}: {_few(found, at)}, "
                f"want {_few(want, at)}"
            )
    return None


def _few(ids: TokenIds, at: int) -> list[int]:
    return [int(number) for number in ids[at : at + 4]]
