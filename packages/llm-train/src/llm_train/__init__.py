"""Pretraining and fine-tuning on megatron-core, on Ascend NPUs, NVIDIA GPUs or a CPU."""

from importlib.metadata import version

__version__ = version("llm-train")
