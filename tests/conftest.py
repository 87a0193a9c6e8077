"""Settings every test starts with: one thread a process, nothing compiled, nothing fetched."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TORCH_COMPILE_DISABLE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
