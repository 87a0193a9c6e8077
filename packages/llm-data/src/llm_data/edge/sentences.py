"""Texts cut into sentences by nltk's Punkt, as Megatron's `--split-sentences` does it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from llm_data.errors import DataError, UsageError, listed

if TYPE_CHECKING:
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

INSTALL = "pip install 'llm-data[sentences]'"

_DATA = "tokenizers/punkt_tab"
_HOW_TO_GET_IT = (
    "`python -m nltk.downloader punkt_tab` fetches it; without network unpack punkt_tab.zip of "
    "nltk_data into the folder tokenizers/ below one that NLTK_DATA names"
)

# Megatron cuts longer texts blindly first.
_PIECE_CHARACTERS = 1_000_000

# Where a sentence may end, with the white space after it; nltk's own leaves that to nobody.
_END_WITH_SPACE = r"\S*%(SentEndChars)s\s*(?=(?P<after_tok>%(NonWord)s|(?P<next_tok>\S+)))"


class _Tables(NamedTuple):
    """What Punkt has learned of a language."""

    abbreviations: frozenset[str]
    collocations: frozenset[tuple[str, str]]
    starters: frozenset[str]
    contexts: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PunktSpec:
    """How to make a splitter in another process: the whole of its language's data.

    `digest` tells the data of one language from another's.
    """

    tables: _Tables
    keep_newlines: bool
    digest: str

    def build(self) -> "PunktSplitter":
        """The splitter."""
        from nltk.tokenize.punkt import (
            PunktLanguageVars,
            PunktParameters,
            PunktSentenceTokenizer,
        )

        class SpacedVars(PunktLanguageVars):
            """Sentences that end with the white space after them."""

            _period_context_fmt = _END_WITH_SPACE

        parameters = PunktParameters()
        parameters.abbrev_types = set(self.tables.abbreviations)
        parameters.collocations = set(self.tables.collocations)
        parameters.sent_starters = set(self.tables.starters)
        parameters.ortho_context.update(self.tables.contexts)
        variables = SpacedVars() if self.keep_newlines else PunktLanguageVars()
        return PunktSplitter(PunktSentenceTokenizer(parameters, lang_vars=variables))


class PunktSplitter:
    """Punkt with the data of one language."""

    def __init__(self, punkt: "PunktSentenceTokenizer") -> None:
        self._punkt = punkt

    def split(self, text: str) -> Sequence[str]:
        """The sentences in order."""
        return [
            sentence
            for first in range(0, len(text), _PIECE_CHARACTERS)
            for sentence in self._punkt.tokenize(text[first : first + _PIECE_CHARACTERS])
        ]


def find_sentences(language: str, *, keep_newlines: bool) -> PunktSpec:
    """The Punkt data of a language, found in nltk's own paths."""
    try:
        from nltk.tokenize.punkt import PunktTokenizer
    except ImportError:
        raise UsageError(f"--split-sentences needs nltk: {INSTALL}") from None
    try:
        parameters = cast("PunktParameters", PunktTokenizer(language)._params)
    except LookupError:
        raise UsageError(_not_there(language)) from None
    except (OSError, ValueError) as error:
        raise DataError(f"--language {language}: no whole Punkt model: {error}") from error
    tables = _Tables(
        abbreviations=frozenset(parameters.abbrev_types),
        collocations=frozenset(parameters.collocations),
        starters=frozenset(parameters.sent_starters),
        contexts=tuple(sorted(parameters.ortho_context.items())),
    )
    return PunktSpec(tables=tables, keep_newlines=keep_newlines, digest=_digest(tables))


def _not_there(language: str) -> str:
    from nltk.data import find

    try:
        there = sorted(path.name for path in Path(str(find(_DATA))).iterdir() if path.is_dir())
    except (LookupError, OSError):
        # Not there at all, or inside its archive.
        return f"no Punkt data in nltk's paths; {_HOW_TO_GET_IT}"
    return f"--language {language}: no Punkt data for it in nltk's paths, only {listed(there)}"


def _digest(tables: _Tables) -> str:
    every = (sorted(table) for table in tables)
    return hashlib.sha256(repr(list(every)).encode()).hexdigest()
