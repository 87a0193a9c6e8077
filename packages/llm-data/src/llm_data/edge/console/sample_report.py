"""What `inspect` prints about sample datasets: counts, then rows as text with what is learned."""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer

from llm_data.edge.datasets.sample_dataset import open_sample_dataset
from llm_data.edge.tokenizer_files import find_tokenizer_file, read_tokenizer_facts
from llm_data.errors import DataError
from llm_data.formats.sample_dataset import SampleDataset
from llm_data.formats.sample_manifest import IGNORED_LABEL, SampleManifest, Side

# Of one sample; what is left out is counted.
SHOWN_TOKENS = 2000

LEARNED_STYLE = "bold green"
REWARD_STYLE = "bold yellow"
# Around what has a style, where there are no colours.
_MARKS = {LEARNED_STYLE: "⟦{}⟧", REWARD_STYLE: "⟦→{}⟧"}
# A text must not steer the terminal.
_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {
    0x7F: "␡"
}

Ids = NDArray[np.integer]
Decode = Callable[[Ids], str]


class Piece(NamedTuple):
    """Text in one style, None for what is not learned."""

    text: str
    style: str | None


def inspect_samples(
    prefix: Path, *, tokenizer: Path, rows: int, console: Console | None = None
) -> None:
    """Counts, then the first rows as text: what is learned in colour, or between ⟦ and ⟧.

    Raises DataError if the dataset was written with another tokenizer.
    """
    dataset = open_sample_dataset(prefix)
    found, wanted = read_tokenizer_facts(tokenizer).digest, dataset.manifest.tokenizer.digest
    if found != wanted:
        raise DataError(
            f"{tokenizer}: tokenizer {found[:16]}…, but {dataset.name} was written with "
            f"{wanted[:16]}…: the text would be wrong"
        )
    decode = _decoder(find_tokenizer_file(tokenizer))
    console = console or Console(highlight=False, soft_wrap=True)
    print_samples(dataset, console)
    for number in range(min(rows, len(dataset))):
        _print_row(dataset, number, decode, console)


def print_samples(dataset: SampleDataset, console: Console) -> None:
    """A table of counts."""
    table = Table("", dataset.name, box=None, header_style="bold")
    for name, value in _facts(dataset.manifest).items():
        table.add_row(escape(name), escape(value))
    console.print(table)


def pieces_of(ids: Ids, learned: NDArray[np.bool_], decode: Decode) -> Iterator[Piece]:
    """The text of ids, cut where learning begins or ends."""
    edges = [0, *(np.flatnonzero(np.diff(learned)) + 1).tolist(), len(ids)]
    for start, text in zip(edges, _texts(ids, edges, decode), strict=False):
        if start < len(ids):
            yield Piece(text, LEARNED_STYLE if learned[start] else None)


def rewards_of(ids: Ids, labels: Ids, decode: Decode) -> Iterator[Piece]:
    """The text of ids, and after each step the reward that its label names."""
    steps = np.flatnonzero(labels != IGNORED_LABEL).tolist()
    texts = _texts(ids, [0, *(step + 1 for step in steps), len(ids)], decode)
    for step, text in zip(steps, texts, strict=False):
        yield Piece(text, None)
        yield Piece(decode(labels[step : step + 1]), REWARD_STYLE)
    yield from (Piece(text, None) for text in texts)


def _texts(ids: Ids, edges: list[int], decode: Decode) -> Iterator[str]:
    """The text between edges: what the ids there add to the text before them.

    Some decoders drop a space before their first token. Where an edge cuts a character, so that
    the text before it does not stay as it was, the ids between are decoded alone.
    """
    before = ""
    for start, end in pairwise(edges):
        upto = decode(ids[:end])
        yield upto[len(before) :] if upto.startswith(before) else decode(ids[start:end])
        before = upto


def _facts(manifest: SampleManifest) -> dict[str, str]:
    facts = {"task": manifest.task}
    if manifest.template is not None:
        facts["template"] = f"{manifest.template.name} ({manifest.template.digest[:16]}…)"
    facts |= {
        name.replace("_", " "): str(value)
        for name, value in manifest.options.items()
        if value is not None
    }
    facts["rows"] = f"{manifest.num_rows:,}"
    facts["samples"] = f"{manifest.num_samples:,}"
    facts["tokens"] = f"{manifest.num_tokens:,}"
    if any(side.labels for side in manifest.sides):
        share = manifest.num_loss_tokens / max(1, manifest.num_tokens)
        facts["learned"] = f"{manifest.num_loss_tokens:,} ({share:.1%} of the tokens)"
    if manifest.packed and manifest.seq_length:
        share = manifest.num_tokens / max(1, manifest.num_rows * manifest.seq_length)
        facts["packed"] = (
            f"{manifest.seq_length:,} entries a row, {share:.2%} of them tokens, the others "
            f"{manifest.pad_id}"
        )
    elif manifest.seq_length is not None:
        facts["longest allowed"] = f"{manifest.seq_length:,}"
    facts["columns"] = ", ".join(f"{column.name} {column.dtype}" for column in manifest.columns)
    facts["dropped"] = _counts(manifest.drops) or "nothing"
    if manifest.notes:
        facts["noted"] = _counts(manifest.notes)
    for source in manifest.sources:
        facts[f"from {source.path}"] = f"{source.files:,} files, {source.bytes:,} bytes"
    facts["made by"] = manifest.created_by
    return facts


def _print_row(dataset: SampleDataset, number: int, decode: Decode, console: Console) -> None:
    manifest, row = dataset.manifest, dataset.row(number)
    if manifest.packed:
        ends = dataset.boundaries(number).tolist()
        total = len(row["input_ids"])
        console.rule(f"row {number}: {len(ends) - 1} samples, {ends[-1]:,} tokens", align="left")
        (side,) = manifest.sides
        for ordinal, (start, end) in enumerate(pairwise(ends), start=1):
            part = {name: column[start:end] for name, column in row.items()}
            _print_part(f"sample {ordinal}", side, part, manifest, decode, console)
        if ends[-1] < total:
            console.print(f"[dim]then {total - ends[-1]:,} times id {manifest.pad_id}[/]")
        return
    console.rule(f"row {number}", align="left")
    for side in manifest.sides:
        _print_part(side.input_ids.removesuffix("input_ids"), side, row, manifest, decode, console)
    of_sides = {name for side in manifest.sides for name in side.columns}
    for name in [name for name in row if name not in of_sides]:
        _print_text(name, [Piece(decode(row[name][:SHOWN_TOKENS]), None)], console)


def _print_part(
    title: str,
    side: Side,
    columns: Mapping[str, Ids],
    manifest: SampleManifest,
    decode: Decode,
    console: Console,
) -> None:
    """One sample of one side."""
    ids = columns[side.input_ids]
    labels = columns[side.labels] if side.labels else np.full(len(ids), IGNORED_LABEL)
    learned = labels != IGNORED_LABEL
    shown, count = ids[:SHOWN_TOKENS], f"{len(ids):,} tokens"
    if manifest.task == "prm":
        pieces = rewards_of(shown, labels[:SHOWN_TOKENS], decode)
        count += f", {np.count_nonzero(learned):,} rewards"
    else:
        pieces = pieces_of(shown, learned[:SHOWN_TOKENS], decode)
        count += f", {np.count_nonzero(learned):,} learned" if side.labels else ""
    _print_text(
        f"{title.strip('_')} {count}".strip(), pieces, console, hidden=len(ids) - len(shown)
    )


def _print_text(
    title: str, pieces: Iterator[Piece] | list[Piece], console: Console, *, hidden: int = 0
) -> None:
    text = Text()
    for piece in pieces:
        shown = piece.text.translate(_CONTROLS)
        if piece.style is not None and (console.color_system is None or console.no_color):
            shown = _MARKS[piece.style].format(shown)
        text.append(shown, piece.style)
    console.print(f"[dim]{escape(title)}:[/]")
    console.print(text)
    if hidden > 0:
        console.print(f"[dim]… and {hidden:,} tokens more[/]")


def _decoder(file: Path) -> Decode:
    tokenizer = Tokenizer.from_file(str(file))
    return lambda ids: tokenizer.decode(ids.tolist(), skip_special_tokens=False)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
