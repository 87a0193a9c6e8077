"""The NeedleBench tasks of a run: imported rows, and the model folder's own tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_eval.edge.local_data import LocalData
from llm_eval.errors import EvalError
from llm_eval.needlebench import DATASET, SIZES, TASKS, Haystack, Tokens

if TYPE_CHECKING:
    from llm_eval.harness.needle_task import NeedleTask


def build(
    names: Sequence[str], *, size: str, data: LocalData, model: Path, max_length: int | None
) -> "list[NeedleTask]":
    """The tasks; raises EvalError where the model's context cannot hold the longest prompt."""
    from transformers import AutoTokenizer

    from llm_eval.harness.needle_task import NeedleTask

    longest = max(SIZES[size].lengths)
    context = min(filter(None, (max_length, _context(model))), default=longest)
    if context < longest:
        raise EvalError(
            f"--size {size}: its longest prompt has {longest} tokens, the context {context}, and "
            "a prompt that is cut may lose its needle; choose a smaller --size or another model"
        )
    rows = data.rows(DATASET, None)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise EvalError(f"{model}: no tokenizer to measure prompts with: {error}") from error
    tokens = Tokens(
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False, verbose=False),
        decode=lambda ids: tokenizer.decode(ids, clean_up_tokenization_spaces=False),
    )
    return [
        NeedleTask(
            name,
            spec=TASKS[name],
            size=SIZES[size],
            haystack=Haystack(rows, spec=TASKS[name], tokens=tokens),
        )
        for name in names
    ]


def _context(model: Path) -> int | None:
    """Positions that the model's `config.json` names; of a Megatron folder nothing is known."""
    from transformers import AutoConfig

    if not (model / "config.json").is_file():
        return None
    config = AutoConfig.from_pretrained(model, local_files_only=True)
    return getattr(config, "max_position_embeddings", None)
