"""What the commands print about runs and datasets."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tokenizers import Tokenizer

from llm_data.config import PreprocessConfig, TrainingConfig
from llm_data.edge.datasets.dataset_manifests import DatasetManifest
from llm_data.edge.datasets.token_dataset import open_token_dataset
from llm_data.edge.durable import with_suffix
from llm_data.edge.runs.pipeline import RunResult
from llm_data.edge.tokenizer_files import find_tokenizer_file, read_tokenizer_facts
from llm_data.edge.tokenizer_training import REJECTS, TrainingResult
from llm_data.errors import DataError
from llm_data.formats.manifest import Manifest
from llm_data.formats.token_dataset import TokenDataset

SAMPLE_TOKENS = 200


def print_run(result: RunResult, config: PreprocessConfig) -> None:
    """A few lines on what a run made, and a table of what it left out."""
    manifest, console = result.manifest, _console()
    if result.already_done:
        console.print(f"already done: {config.stem}.json")
    console.print(_made(manifest, config))
    if result.resumed_documents:
        console.print(f"resumed after {result.resumed_documents:,}")
    if not isinstance(manifest, Manifest) and manifest.notes:
        console.print(f"noted: {_counts(manifest.notes)}")
    if manifest.drops:
        console.print(_drop_table(manifest.drops))
        _print_set_aside(console, with_suffix(config.stem, ".rejects.jsonl"))
    if result.ignored:
        console.print(f"files in the folders that were not read: {_counts(result.ignored)}")


def print_training(result: TrainingResult, config: TrainingConfig) -> None:
    """A few lines on the tokenizer a training made."""
    console = _console()
    if result.already_done:
        console.print(f"already done: {config.output}")
    console.print(
        f"{result.vocab_size:,} tokens from {result.num_documents:,} documents in {config.output}"
    )
    if result.drops:
        console.print(_drop_table(result.drops))
        _print_set_aside(console, config.output / REJECTS)
    if result.vocab_size < config.vocab_size:
        console.print(f"fewer than the {config.vocab_size:,} asked for: too little text to merge")


def print_dataset(dataset: TokenDataset) -> None:
    """A table of counts."""
    console, lengths = _console(), dataset.document_lengths()
    table = Table("", dataset.name, box=None, header_style="bold")
    rows = {
        "documents": f"{len(dataset):,}",
        "sequences": f"{dataset.index.num_sequences:,}",
        "tokens": f"{dataset.index.num_tokens:,}",
        "dtype": dataset.index.dtype.name,
        "bytes": f"{dataset.index.bin_bytes:,}",
    }
    if len(lengths):
        rows["tokens a document"] = (
            f"mean {lengths.mean():,.1f}, median {np.median(lengths):,.0f}, "
            f"least {lengths.min():,}, most {lengths.max():,}"
        )
    if dataset.manifest:
        manifest = dataset.manifest
        rows["key"] = f"{manifest.key} ({manifest.level})"
        rows["appended id"] = "none" if manifest.eod_id is None else str(manifest.eod_id)
        rows["tokenizer"] = (
            f"{manifest.tokenizer.digest[:16]}… with {manifest.tokenizer.vocab_size:,} ids"
        )
        rows["dropped"] = _counts(manifest.drops) or "nothing"
        for source in manifest.sources:
            rows[f"from {source.path}"] = f"{source.files:,} files, {source.bytes:,} bytes"
        rows["made by"] = manifest.created_by
    for name, value in rows.items():
        table.add_row(name, escape(value))
    console.print(table)


def print_templates() -> None:
    """A table of the templates that come with the package."""
    from llm_data.edge.console.template_report import list_templates

    table = Table("name", "tools", "thoughts", "an answer ends with", "of", box=None)
    for row in list_templates():
        ends = " or ".join(row.ends) or "what its text says"
        thoughts = "yes" if row.has_thinking else ""
        table.add_row(row.name, row.tools, thoughts, escape(ends), escape(row.about))
    _console().print(table)


def inspect_tokens(prefix: Path, *, tokenizer: Path, documents: int) -> None:
    """Counts of a token dataset, then its first documents as text."""
    dataset = open_token_dataset(prefix)
    facts = read_tokenizer_facts(tokenizer)
    wanted = dataset.manifest.tokenizer.digest if dataset.manifest else facts.digest
    if facts.digest != wanted:
        raise DataError(
            f"{tokenizer}: tokenizer {facts.digest[:16]}…, but {dataset.name} was written with "
            f"{wanted[:16]}…: the text would be wrong"
        )
    print_dataset(dataset)
    decoder = Tokenizer.from_file(str(find_tokenizer_file(tokenizer)))
    console = _console()
    for number in range(min(documents, len(dataset))):
        ids = dataset.document(number)
        console.rule(f"document {number}: {len(ids):,} tokens", align="left")
        text = decoder.decode(ids[:SAMPLE_TOKENS].tolist(), skip_special_tokens=False)
        console.print(text, markup=False, highlight=False, end="")
        console.print(" …" if len(ids) > SAMPLE_TOKENS else "")


def _made(manifest: DatasetManifest, config: PreprocessConfig) -> str:
    size = f"{sum(entry.bytes for entry in manifest.files.values()):,} bytes"
    if isinstance(manifest, Manifest):
        sentences = f"{manifest.num_sequences:,} sentences in " if config.split_sentences else ""
        return (
            f"{sentences}{manifest.num_documents:,} documents, {manifest.num_tokens:,} tokens of "
            f"{manifest.dtype} in {config.stem}.bin ({size})"
        )
    rows = ""
    if manifest.packed and manifest.seq_length:
        full = manifest.num_tokens / max(1, manifest.num_rows * manifest.seq_length)
        rows = f" in {manifest.num_rows:,} rows of {manifest.seq_length:,}, {full:.2%} full"
    return (
        f"{manifest.num_samples:,} samples, {manifest.num_tokens:,} tokens, "
        f"{manifest.num_loss_tokens:,} of them learned{rows}: {config.stem}_*_document ({size})"
    )


def _drop_table(drops: Mapping[str, int]) -> Table:
    table = Table("dropped because", "records", box=None, header_style="bold")
    for reason, count in (*drops.items(), ("all", sum(drops.values()))):
        table.add_row(reason, f"{count:,}")
    return table


def _print_set_aside(console: Console, rejects: Path) -> None:
    if rejects.exists():
        console.print(f"records set aside, with their lines: {rejects}", markup=False)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)
