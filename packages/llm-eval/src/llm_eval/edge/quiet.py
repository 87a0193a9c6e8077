"""Offline and quiet libraries. Call before the first import of any of them."""

import logging
import os


def offline() -> None:
    """Keep transformers and datasets from looking for anything on a network."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[name] = "1"


def quiet() -> None:
    """No bars of other libraries, and only their warnings that tell of a wrong result."""
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in ("lm_eval.models.huggingface", "lm_eval.evaluator_utils"):
        logging.getLogger(name).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """False for warnings of what we mean to do: pass a loaded model, score each depth alone."""
    message = record.getMessage()
    meant = ("already-initialized", "`pretrained` model kwarg", "[needlebench_")
    return not any(part in message for part in meant)
