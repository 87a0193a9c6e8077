"""What lm-eval tells of the machine beside its results: versions alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any


@contextmanager
def versions_alone() -> Iterator[None]:
    """Within, lm-eval's evaluator asks neither git nor pip.

    Our results leave out what they say, as it differs from run to run. They take more than a
    second, and git complains where it finds no repository.
    """
    from lm_eval import evaluator

    module: Any = evaluator
    before = module.get_git_commit_hash, module.add_env_info
    module.get_git_commit_hash, module.add_env_info = _no_hash, _add_versions
    try:
        yield
    finally:
        module.get_git_commit_hash, module.add_env_info = before


def _no_hash() -> None:
    return None


def _add_versions(storage: dict[str, Any]) -> None:
    storage["transformers_version"] = _version("transformers")
    storage["lm_eval_version"] = _version("lm_eval")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "N/A"
