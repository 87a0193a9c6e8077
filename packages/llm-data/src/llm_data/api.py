"""The Python API: the same names as the commands, importable without torch."""

from llm_data.config import OnError, PreprocessConfig, Task, TrainingConfig
from llm_data.edge.datasets.blending import blend, plan_blend
from llm_data.edge.datasets.merging import merge, merge_groups
from llm_data.edge.datasets.sample_dataset import open_sample_dataset, verify_samples
from llm_data.edge.datasets.splitting import equal_parts, named_parts, split
from llm_data.edge.datasets.token_dataset import TokenDatasetWriter, open_token_dataset, verify
from llm_data.edge.handlers import with_dataset_info
from llm_data.edge.runs.pipeline import RunResult, preprocess
from llm_data.edge.template_files import find_template, read_special_tokens
from llm_data.edge.tokenizer_training import TrainingResult, train_tokenizer
from llm_data.errors import DataError, FormatError, UsageError
from llm_data.formats.manifest import Manifest
from llm_data.formats.sample_dataset import SampleDataset
from llm_data.formats.sample_manifest import SampleManifest
from llm_data.formats.token_dataset import TokenDataset
from llm_data.packing import Packs, pack
from llm_data.templates import Rendered, SpecialTokens, Template, TemplateSource, Thinking

__all__ = [
    "DataError",
    "FormatError",
    "Manifest",
    "OnError",
    "Packs",
    "PreprocessConfig",
    "Rendered",
    "RunResult",
    "SampleDataset",
    "SampleManifest",
    "SpecialTokens",
    "Task",
    "Template",
    "TemplateSource",
    "Thinking",
    "TokenDataset",
    "TokenDatasetWriter",
    "TrainingConfig",
    "TrainingResult",
    "UsageError",
    "blend",
    "equal_parts",
    "find_template",
    "merge",
    "merge_groups",
    "named_parts",
    "open_sample_dataset",
    "open_token_dataset",
    "pack",
    "plan_blend",
    "preprocess",
    "read_special_tokens",
    "split",
    "train_tokenizer",
    "verify",
    "verify_samples",
    "with_dataset_info",
]
