"""Hugging Face and Megatron-core weights, converted both ways for any parallel layout."""

from importlib.metadata import version

__version__ = version("llm-ckpt")
