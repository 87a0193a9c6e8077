"""Raw text, chat and preference data to indexed, memory-mapped token datasets."""


def __getattr__(name: str) -> str:
    # Looked up only when asked for: it takes longer than all else that a worker imports.
    if name == "__version__":
        from importlib.metadata import version

        return version("llm-data")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
