"""Raw text in a run's config, made into token datasets before anything is trained."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path

from llm_train.config import RawConfig, RunConfig
from llm_train.interfaces import PrepareRawData
from llm_train.overrides import ConfigError
from llm_train.weights import ProviderError

GROUP = "llm_train.raw_data"
FOLDER = "data"


def with_datasets(config: RunConfig, *, say: Callable[[str], None]) -> RunConfig:
    """The config with token datasets in place of `data.raw`, which are made if they are not there.

    They stand in `save.path`/data. Any number of processes may call it: the first one works, the
    others wait for its lock and find the work done. Raises ProviderError if no installed package
    can tokenize.
    """
    raw = config.data.raw
    if raw is None:
        return config
    prepare = _provider()
    tokenizer = raw.tokenizer or _tokenizer_of_model(config)
    folder = config.save.path / FOLDER
    with _alone(folder, say):
        train = _prefix(prepare, raw, raw.train, tokenizer, folder / "train")
        valid = config.data.valid
        if raw.valid:
            valid = (_prefix(prepare, raw, raw.valid, tokenizer, folder / "valid"),)
    data = config.data.model_copy(update={"raw": None, "train": (train,), "valid": valid})
    return config.model_copy(update={"data": data})


def overrides_for_ranks(config: RunConfig, resolved: RunConfig) -> list[str]:
    """Words that give a rank the datasets its launcher made; none if there was no raw data."""
    if config.data.raw is None:
        return []
    prefixes = {"train": resolved.data.train, "valid": resolved.data.valid}
    return [
        "data.raw=null",
        *(
            f"data.{key}={json.dumps([str(one) for one in many], ensure_ascii=False)}"
            for key, many in prefixes.items()
        ),
    ]


def _provider() -> PrepareRawData:
    providers = list(entry_points(group=GROUP))
    if not providers:
        raise ProviderError(
            f"data.raw: tokenizing needs a provider of {GROUP!r} and none is installed; "
            "pip install llm-data, or name token datasets in data.train"
        )
    if len(providers) > 1:
        names = ", ".join(sorted(provider.name for provider in providers))
        raise ProviderError(f"{GROUP!r} has several providers: {names}; uninstall all but one")
    return providers[0].load()


def _tokenizer_of_model(config: RunConfig) -> Path:
    load = config.model.load
    if load is None:
        raise ConfigError(
            "data.raw.tokenizer: missing, and model.arch has none; wanted a tokenizer.json or a "
            "folder with it"
        )
    if not (load / "tokenizer.json").is_file():
        raise ConfigError(
            f"data.raw.tokenizer: missing, and {load} holds no tokenizer.json; wanted one or a "
            "folder with it"
        )
    return load


def _prefix(
    prepare: PrepareRawData, raw: RawConfig, inputs: Sequence[str], tokenizer: Path, output: Path
) -> Path:
    return prepare(
        inputs,
        tokenizer=tokenizer,
        output=output,
        key=raw.key,
        patterns=raw.patterns,
        append_eod=raw.append_eod,
        skip_bad_records=raw.skip_bad_records,
        workers=raw.workers,
    )


@contextmanager
def _alone(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the folder's lock, waiting for it if need be; it dies with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that tokenizes into {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
