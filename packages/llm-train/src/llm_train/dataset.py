"""What is known of a token dataset before its tokens are read."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """What the index and the manifest say; None where there is no manifest."""

    sequences: int
    tokens: int
    tokenizer_digest: str | None
    vocab_size: int | None
    eos_id: int | None
