"""What a run reads, checked against each other before anything heavy is loaded."""

from collections.abc import Sequence
from pathlib import Path

from llm_train.arch import Arch
from llm_train.config import DataConfig, RunConfig, Stage, TrainConfig
from llm_train.dataset import DatasetFacts, SampleFacts
from llm_train.edge.chat_template import template_digest
from llm_train.edge.sample_dataset import manifest_path, read_manifest, read_sample_facts
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
        _has_rows(prefix, one, arch)
    return facts


def read_inputs(config: RunConfig, arch: Arch) -> list[DatasetFacts]:
    """Facts of the datasets that the run's stage reads, those of `data.train` first."""
    if config.stage is Stage.PRETRAIN:
        return read_datasets(config.data, arch)
    return [one.dataset for one in read_samples(config.data, config.train, arch)]


def read_samples(data: DataConfig, train: TrainConfig, arch: Arch) -> list[SampleFacts]:
    """Facts of the sample datasets of `data.train`, then of `data.valid`: one template made all.

    Raises DataError naming the file, what was found and what was wanted.
    """
    prefixes = (*data.train, *data.valid)
    facts = [read_sample_facts(prefix) for prefix in prefixes]
    for prefix, one in zip(prefixes, facts, strict=True):
        _has_rows(prefix, one.dataset, arch)
        if one.is_packed and one.seq_length is not None and one.seq_length > train.seq_length:
            raise DataError(
                f"{manifest_path(prefix)}: its packed rows have {one.seq_length} tokens, "
                f"train.seq_length is {train.seq_length}; want as many, or pack again with "
                f"llm-data preprocess --pack --seq-length {train.seq_length}"
            )
    made_by = {
        str(prefix): f"{one.template} ({one.template_digest[:12]}…)"
        for prefix, one in zip(prefixes, facts, strict=True)
        if one.template_digest is not None
    }
    if len(set(made_by.values())) > 1:
        raise DataError(
            "datasets were made with different chat templates: "
            + ", ".join(f"{prefix} with {name}" for prefix, name in made_by.items())
            + "; want one"
        )
    return facts


def one_template(
    data: DataConfig, facts: Sequence[SampleFacts], source: WeightSource | None
) -> None:
    """Refuse samples of a tokenizer's own template (`hf`) that is not the model's.

    Raises DataError when they differ and `data.allow_tokenizer_mismatch` is off.
    """
    if source is None or data.allow_tokenizer_mismatch:
        return
    wanted = template_digest(source.companions())
    for prefix, one in zip((*data.train, *data.valid), facts, strict=True):
        if one.template == "hf" and wanted is not None and one.template_digest != wanted:
            raise DataError(
                f"{prefix}: made with the chat template {str(one.template_digest)[:12]}… of its "
                f"tokenizer, the model's is {wanted[:12]}…; want one, or "
                "data.allow_tokenizer_mismatch=true"
            )


def with_boundaries(config: RunConfig) -> RunConfig:
    """The config with `data.reset_documents` where a sample dataset has packed rows.

    Datasets that are not there yet change nothing: the run itself names them.
    """
    if config.stage is Stage.PRETRAIN or config.data.reset_documents:
        return config
    prefixes = (*config.data.train, *config.data.valid)
    there = [prefix for prefix in prefixes if manifest_path(prefix).is_file()]
    if not any(read_manifest(prefix)["packed"] for prefix in there):
        return config
    data = config.data.model_copy(update={"reset_documents": True})
    return config.model_copy(update={"data": data})


def _has_rows(prefix: Path, facts: DatasetFacts, arch: Arch) -> None:
    """Every token has a row in the embedding."""
    if facts.vocab_size is not None and facts.vocab_size > arch.vocab_size:
        raise DataError(
            f"{prefix}: its tokenizer has {facts.vocab_size} tokens, the model's vocabulary "
            f"{arch.vocab_size}"
        )


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
