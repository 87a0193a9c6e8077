"""A Hugging Face model folder: checked before anything heavy, digested, and loaded strictly."""

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from llm_eval.errors import EvalError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("auto", "float32", "bfloat16", "float16")
MEGATRON_TRACKER = "latest_checkpointed_iteration.txt"
_CHUNK_BYTES = 1 << 20
_WHOLE_FILE_BYTES = 256 << 20
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def check(folder: Path) -> None:
    """Raise unless the folder looks loadable: config, safetensors with every shard, tokenizer."""
    if not folder.is_dir():
        raise EvalError(f"{folder}: no such model folder")
    if not (folder / "config.json").is_file():
        if (folder / MEGATRON_TRACKER).exists():
            raise EvalError(
                f"{folder}: a Megatron checkpoint, which the hf engine cannot run; "
                "use --scorer llm-infer, or make a Hugging Face folder of it with\n"
                f"  llm-ckpt convert {folder} --to hf --output {folder}-hf"
            )
        raise EvalError(f"{folder}: no config.json; want a Hugging Face model folder")
    _check_weights(folder)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise EvalError(f"{folder}: no tokenizer; want one of {', '.join(_TOKENIZER_FILES)}")


def digest(folder: Path) -> str:
    """SHA-256 of names and contents, so that other weights in the same place are noticed.

    Files above 256 MiB count by size and 64 evenly spaced MiB, to stay quick at any size.
    """
    state = hashlib.sha256()
    files = [*folder.glob("*.json"), *folder.glob("*.safetensors"), *folder.glob("*.model")]
    for file in sorted([*files, *_megatron_files(folder)]):
        size = file.stat().st_size
        state.update(f"{file.relative_to(folder).as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            _digest_file(state, stream, size)
    return state.hexdigest()


def load(
    folder: Path, *, device: str, dtype: str
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The model in evaluation mode on `device`, and its tokenizer; every weight must be there."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, info = from_pretrained(
            folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise EvalError(f"{folder}: cannot be loaded: {error}") from error
    _check_loaded(folder, info)
    _check_tokenizer(folder, tokenizer, model.get_input_embeddings().weight.shape[0])
    return model.to(device).eval(), tokenizer


def outline(folder: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The model without its weights (on the `meta` device), and its tokenizer: to plan with."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval(), tokenizer


def require_hf() -> None:
    """Raise unless what the `hf` extra brings is installed."""
    missing = [name for name in ("torch", "transformers", "accelerate") if not find_spec(name)]
    if missing:
        raise EvalError(
            f"{' and '.join(missing)} not installed; the hf engine needs\n"
            "  pip install 'llm-eval[hf]'"
        )


def _megatron_files(folder: Path) -> list[Path]:
    """The tracker of a Megatron checkpoint and the files of the iteration that it names."""
    tracker = folder / MEGATRON_TRACKER
    if not tracker.is_file():
        return []
    word = tracker.read_text(errors="replace").strip()
    name = f"iter_{int(word):07d}" if word.isdecimal() else word
    return [tracker, *(path for path in (folder / name).rglob("*") if path.is_file())]


def _check_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise EvalError(f"{index}: not a safetensors index ({error!r})") from None
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise EvalError(
                f"{folder}: {len(missing)} of {len(shards)} shards missing, first {missing[0]}"
            )
    elif not any(folder.glob("*.safetensors")):
        raise EvalError(f"{folder}: no *.safetensors; want weights in safetensors format")


def _check_loaded(folder: Path, info: dict[str, object]) -> None:
    for kind in ("missing_keys", "mismatched_keys"):
        found = info.get(kind)
        keys = sorted(map(str, found)) if isinstance(found, set | list | tuple | dict) else []
        if keys:
            raise EvalError(
                f"{folder}: {kind.replace('_', ' ')}: {', '.join(keys[:5])}"
                f"{f' and {len(keys) - 5} more' if len(keys) > 5 else ''}; "
                "the weights do not fit config.json"
            )


def _check_tokenizer(folder: Path, tokenizer: "PreTrainedTokenizerBase", rows: int) -> None:
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise EvalError(
            f"{folder}: the tokenizer names neither bos_token nor eos_token; "
            "one of them starts every text that is scored (tokenizer_config.json)"
        )
    # Added tokens beyond are common (a padding token): HFEngine refuses texts that have them.
    if tokenizer.vocab_size > rows:
        raise EvalError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {rows}"
        )


def _digest_file(state: "hashlib._Hash", stream: BinaryIO, size: int) -> None:
    if size <= _WHOLE_FILE_BYTES:
        while chunk := stream.read(_CHUNK_BYTES):
            state.update(chunk)
        return
    for step in range(64):
        stream.seek(step * (size - _CHUNK_BYTES) // 63)
        state.update(stream.read(_CHUNK_BYTES))
