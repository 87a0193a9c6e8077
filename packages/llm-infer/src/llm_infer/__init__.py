"""Streaming generation, chat and serving from Hugging Face or Megatron weights."""

from importlib.metadata import version

__version__ = version("llm-infer")
