"""One checkpoint on its way to disk: every rank writes its part, and all know when one cannot.

megatron-core's own `dist_checkpointing.save` has the same steps, but where one rank writes alone
and fails, it leaves the others waiting in the next collective until their timeout.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.serialization import get_default_save_common_strategy
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy

from llm_train.edge.checkpoint_files import FileFacts, file_facts
from llm_train.edge.write_results import WriteResults

_FORMAT = ("torch_dist", 1)
T = TypeVar("T")


class SaveError(RuntimeError):
    """A checkpoint that could not be written; every rank raises it."""


def together(action: Callable[[], T]) -> T:
    """Do something on every rank that may fail on some; raises SaveError on all if it does.

    A full disk is an OSError, or a RuntimeError where torch's own writer meets it.
    """
    value, error = None, None
    try:
        value = action()
    except (OSError, RuntimeError) as caught:
        error = f"rank {dist.get_rank()}: {caught or type(caught).__name__}"
    if found := [one for one in gather(error) if one]:
        raise SaveError(found[0])
    return value  # pyright: ignore[reportReturnType]  # no rank failed, so this one has it


def on_first_rank(action: Callable[[], None]) -> None:
    """Do something on rank 0 that may fail; raises SaveError on every rank if it does."""
    together(action if dist.get_rank() == 0 else lambda: None)


def gather(mine: Any) -> list[Any]:
    """What every rank has, in order of ranks."""
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, mine)
    return everywhere


class Writing:
    """The sharded state of all ranks, planned and staged, to be written into `folder`."""

    def __init__(self, state: dict[str, Any], folder: Path) -> None:
        self.folder = folder
        self._sums = WriteResults()
        sharded, common = save_preprocess(state)
        assert isinstance(sharded, dict)
        strategy = get_default_save_common_strategy()
        on_first_rank(lambda: strategy.save_common(common, str(folder)))
        self._planned = _Planned(*_FORMAT)
        request = self._planned.async_save(sharded, folder)
        write = request.async_fn and partial(_write_and_sum, request.async_fn, self._sums)
        self.request = request._replace(async_fn=write)

    def write(self) -> None:
        """Write this rank's part here and now."""
        request, arguments = self.request, list(self.request.async_fn_args)
        if request.async_fn is None:
            return
        if request.preload_fn is not None:
            arguments[1] = request.preload_fn()
        request.async_fn(*arguments, **request.async_fn_kwargs)

    def end(self) -> Mapping[str, FileFacts]:
        """After every rank's part is written: the index, and the facts of all files."""
        writer, metadata = self._planned.writer, self._planned.metadata
        found = writer.retrieve_write_results()
        if failed := [one for one in gather(_failure(found)) if one]:
            raise SaveError(failed[0])
        is_first = dist.get_rank() == 0
        results: list[Any] | None = [None] * dist.get_world_size() if is_first else None
        dist.gather_object(found, results, dst=0)

        def finish() -> None:
            writer.finish(metadata, results)
            save_config(CheckpointingConfig(*_FORMAT), str(self.folder))

        on_first_rank(finish)
        return self._facts()

    def _facts(self) -> Mapping[str, FileFacts]:
        mine: dict[str, FileFacts] = self._sums.get_nowait() if self.request.async_fn else {}
        summed = {name: one for part in gather(mine) for name, one in part.items()}

        def sum_others() -> dict[str, FileFacts]:
            if dist.get_rank() != 0:
                return {}
            names = {path.name for path in self.folder.iterdir()} - summed.keys()
            return {name: file_facts(self.folder / name) for name in sorted(names)}

        return {**summed, **together(sum_others)}


class _Planned(TorchDistSaveShardedStrategy):
    """megatron-core's writer, its end left to us: `finish` may fail on the first rank alone."""

    writer: Any = None
    metadata: Any = None

    def _get_save_and_finalize_callbacks(self, writer: Any, save_state_dict_ret: Any) -> Any:
        self.writer, self.metadata = writer, save_state_dict_ret[1]
        write, preload, arguments = writer.get_save_function_and_args()
        return AsyncRequest(write, arguments, [], preload_fn=preload)


def _write_and_sum(
    write: Callable[..., None], sums: WriteResults, rank: int, buckets: list[Any], results: Any
) -> None:
    """Write, then sum what was written; it may run in a process of its own."""
    write(rank, buckets, results)
    paths = [Path(path) for path, _, _ in buckets]
    sums.put({path.name: file_facts(path) for path in paths if path.is_file()})


def _failure(found: Any) -> str | None:
    """What a rank's writer failed of; it answers with a list or with an exception."""
    if isinstance(found, list):
        return None
    return f"rank {dist.get_rank()}: {found[0]}"
