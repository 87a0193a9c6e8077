"""The Python API: the same names as the commands, importable without torch."""

from llm_data.config import OnError, PreprocessConfig, TrainingConfig
from llm_data.edge.pipeline import RunResult, preprocess
from llm_data.edge.token_dataset import TokenDatasetWriter, open_token_dataset, verify
from llm_data.edge.tokenizer_training import TrainingResult, train_tokenizer
from llm_data.errors import DataError, FormatError, UsageError
from llm_data.formats.manifest import Manifest
from llm_data.formats.token_dataset import TokenDataset

__all__ = [
    "DataError",
    "FormatError",
    "Manifest",
    "OnError",
    "PreprocessConfig",
    "RunResult",
    "TokenDataset",
    "TokenDatasetWriter",
    "TrainingConfig",
    "TrainingResult",
    "UsageError",
    "open_token_dataset",
    "preprocess",
    "train_tokenizer",
    "verify",
]
