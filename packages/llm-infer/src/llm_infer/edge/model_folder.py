"""A Hugging Face model folder: checked before anything heavy is imported, and loaded strictly."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_infer.edge import device as devices
from llm_infer.edge.guides import JsonGuides, NoJsonGuides
from llm_infer.engine import Engine, Tokenizer
from llm_infer.errors import InferError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("auto", "float32", "bfloat16", "float16")
MEGATRON_TRACKER = "latest_checkpointed_iteration.txt"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def nothing() -> None:
    """What there is to close of a model in this process alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model ready to answer."""

    engine: Engine
    tokenizer: Tokenizer
    guides: JsonGuides = field(default_factory=NoJsonGuides)
    """For a `GuidingEngine`."""
    wait: Callable[[], object] | None = None
    """Returns when all weights are in place, raises what is wrong with them; None: they are."""
    close: Callable[[], None] = nothing
    """Ends processes that compute along."""


def check(folder: Path) -> None:
    """Raise unless the folder looks loadable: config, safetensors with every shard, tokenizer."""
    if not folder.is_dir():
        raise InferError(f"{folder}: no such model folder")
    if not (folder / "config.json").is_file():
        if (folder / MEGATRON_TRACKER).exists():
            raise InferError(
                f"{folder}: a Megatron checkpoint, which the transformers engine cannot run; "
                "use --engine native, or make a Hugging Face folder of it with\n"
                f"  llm-ckpt convert {folder} --to hf --output {folder}-hf"
            )
        raise InferError(f"{folder}: no config.json; want a Hugging Face model folder")
    _check_weights(folder)
    check_tokenizer(folder)


def check_tokenizer(folder: Path) -> None:
    """Raise unless there is a tokenizer's file."""
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise InferError(f"{folder}: no tokenizer; want one of {', '.join(_TOKENIZER_FILES)}")


def load_tokenizer(folder: Path, *, num_rows: int) -> "PreTrainedTokenizerBase":
    """The folder's tokenizer of transformers, for a model with `num_rows` rows in its embedding."""
    keep_offline()
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InferError(f"{folder}: the tokenizer cannot be loaded: {error}") from error
    check_size(folder, tokenizer.vocab_size, num_rows=num_rows)
    return tokenizer


def check_size(folder: Path, num_tokens: int, *, num_rows: int) -> None:
    """Raise when a tokenizer's own vocabulary has tokens that the model's embedding lacks.

    Added tokens beyond are common, a padding token above all; prompts that have them are refused.
    """
    if num_tokens > num_rows:
        raise InferError(f"{folder}: the tokenizer has {num_tokens} tokens, the model {num_rows}")


def load(folder: Path, *, device: devices.DeviceName, dtype: str) -> Loaded:
    """The model on the transformers engine; every weight must be there."""
    check(folder)
    keep_offline()
    from llm_infer.edge.tokenizer import HfTokenizer
    from llm_infer.engines.transformers import TransformersEngine

    where = devices.resolve(device)
    model = _from_pretrained(folder, dtype)
    num_rows = model.config.get_text_config().vocab_size
    tokenizer = load_tokenizer(folder, num_rows=num_rows)
    engine = TransformersEngine(
        model.to(where).eval(),  # pyright: ignore[reportArgumentType]: torch's `to` is overloaded
        end_tokens=_end_tokens(model, tokenizer),
    )
    return Loaded(engine=engine, tokenizer=HfTokenizer(tokenizer, num_rows=num_rows))


def _from_pretrained(folder: Path, dtype: str) -> "PreTrainedModel":
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    try:
        model, info = from_pretrained(
            folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InferError(f"{folder}: cannot be loaded: {error}") from error
    for kind in ("missing_keys", "mismatched_keys"):
        keys = sorted(map(str, info[kind]))
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            raise InferError(
                f"{folder}: {kind.replace('_', ' ')}: {', '.join(keys[:5])}{more}; "
                "the weights do not fit config.json"
            )
    return model


def _end_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Where to end: generation_config.json says, else the tokenizer's eos_token."""
    config = model.generation_config
    ids = config.eos_token_id if config is not None else None
    if ids is None:
        ids = tokenizer.eos_token_id
    if ids is None:
        return []
    return [int(i) for i in ids] if isinstance(ids, list | tuple) else [int(ids)]


def _check_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise InferError(f"{index}: not a safetensors index ({error!r})") from None
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            lacking = f"{len(missing)} of {len(shards)} shards missing, first {missing[0]}"
            raise InferError(f"{folder}: {lacking}")
    elif not any(folder.glob("*.safetensors")):
        raise InferError(f"{folder}: no *.safetensors; want weights in safetensors format")


def keep_offline() -> None:
    """Keep transformers from a network and from chatter; before its first import."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[name] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
