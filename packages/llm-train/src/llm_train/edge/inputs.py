"""What a run reads, checked against each other before anything heavy is loaded."""

from collections.abc import Sequence

from llm_train.arch import Arch
from llm_train.config import DataConfig
from llm_train.dataset import DatasetFacts
from llm_train.edge.token_dataset import DataError, read_facts
from llm_train.edge.tokenizer_files import tokenizer_digest
from llm_train.interfaces import WeightSource


def read_datasets(data: DataConfig, arch: Arch) -> list[DatasetFacts]:
    """Facts of `data.train`, then of `data.valid`; every token has a row in the embedding.

    Raises DataError naming the file, what was found and what was wanted.
    """
    prefixes = (*data.train, *data.valid)
    facts = [read_facts(prefix) for prefix in prefixes]
    for prefix, one in zip(prefixes, facts, strict=True):
        if one.vocab_size is not None and one.vocab_size > arch.vocab_size:
            raise DataError(
                f"{prefix}: its tokenizer has {one.vocab_size} tokens, the model's vocabulary "
                f"{arch.vocab_size}"
            )
    return facts


def one_tokenizer(
    data: DataConfig, facts: Sequence[DatasetFacts], source: WeightSource | None
) -> str | None:
    """The digest of the tokenizer that all datasets and the model share; None when none says.

    Raises DataError when they differ and `data.allow_tokenizer_mismatch` is off.
    """
    named = {
        str(prefix): one.tokenizer_digest
        for prefix, one in zip((*data.train, *data.valid), facts, strict=True)
        if one.tokenizer_digest
    }
    if source is not None and (digest := tokenizer_digest(source.companions())):
        named["the model"] = digest
    if len(set(named.values())) > 1 and not data.allow_tokenizer_mismatch:
        raise DataError(
            "datasets and model name different tokenizers: "
            + ", ".join(f"{who} {digest[:12]}…" for who, digest in named.items())
            + "; want one, or data.allow_tokenizer_mismatch=true"
        )
    return next(iter(named.values()), None)
