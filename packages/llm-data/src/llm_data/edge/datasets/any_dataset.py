"""Looking at a dataset of either kind."""

from pathlib import Path

from llm_data.edge.datasets.sample_dataset import find_sample_stem, verify_samples
from llm_data.edge.datasets.token_dataset import verify


def verified(prefix: Path, *, index_only: bool = False) -> str:
    """What a dataset holds, after checking all of it; FormatError with what is wrong first."""
    if index_only or find_sample_stem(prefix) is None:
        tokens = verify(prefix, index_only=index_only)
        return f"{tokens.name}: {len(tokens):,} documents, {tokens.index.num_tokens:,} tokens"
    samples = verify_samples(prefix)
    manifest = samples.manifest
    return (
        f"{samples.name}: {manifest.num_samples:,} samples in {manifest.num_rows:,} rows, "
        f"{manifest.num_tokens:,} tokens, {manifest.num_loss_tokens:,} of them learned"
    )


def inspect(prefix: Path, *, tokenizer: Path, count: int) -> None:
    """Print counts, then the first documents or rows."""
    if find_sample_stem(prefix) is None:
        from llm_data.edge.console.report import inspect_tokens

        inspect_tokens(prefix, tokenizer=tokenizer, documents=count)
    else:
        from llm_data.edge.console.sample_report import inspect_samples

        inspect_samples(prefix, tokenizer=tokenizer, rows=count)
