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


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFacts:
    """What the manifest of a sample dataset says, and of its packed rows how long they are."""

    dataset: DatasetFacts
    samples: int
    is_packed: bool
    seq_length: int | None
    template: str | None
    template_digest: str | None
