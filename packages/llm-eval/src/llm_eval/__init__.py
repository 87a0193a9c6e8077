"""Benchmark scores for Hugging Face and Megatron models, on lm-evaluation-harness."""

from importlib.metadata import version

__version__ = version("llm-eval")
