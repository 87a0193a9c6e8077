"""Raw text, chat and preference data to indexed, memory-mapped token datasets."""

from importlib.metadata import version

__version__ = version("llm-data")
