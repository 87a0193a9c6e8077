"""Runs a function on N ranks forked from this warm process: megatron-core is imported only once.

Every rank gets the environment a launcher would give it. Nothing is left behind: ranks that fail or
outlast the time limit are killed with all they started.
"""

import gc
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

TIME_LIMIT_S = 120.0


class RankError(AssertionError):
    """A rank ended with an error, or none ended in time."""


def warm() -> None:
    """Import megatron-core as training does, while torch.compile does nothing."""
    from llm_train.edge.patches import Patches, patch_cpu, patch_gaps
    from llm_train.edge.quiet import quiet_libraries

    quiet_libraries()
    torch.set_num_threads(1)
    patches = Patches()
    patch_cpu(patches)
    patch_gaps(patches)
    # torch imports it in the first backward of a pipeline, which would cost each rank a second.
    from torch.fx.experimental import symbolic_shapes  # noqa: F401

    import llm_train.edge.checkpoint
    import llm_train.train.loop  # noqa: F401

    patches.undo()


def run_ranks(function: Callable[[int], object], world_size: int) -> list[object]:
    """What `function(rank)` returned on each rank, by torch.save."""
    from llm_train.edge.launch import free_port

    warm()
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        started = [
            _fork(function, rank, world_size, port, Path(folder)) for rank in range(world_size)
        ]
        _wait(started, Path(folder))
        return [
            torch.load(Path(folder) / f"result_{rank}", weights_only=False)
            for rank in range(world_size)
        ]


def _fork(
    function: Callable[[int], object], rank: int, world_size: int, port: int, folder: Path
) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        # What this process has of its parent is never garbage: not to be looked at, nor copied.
        gc.freeze()
        os.setpgid(0, 0)
        log = os.open(folder / f"log_{rank}", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(world_size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        torch.save(function(rank), folder / f"result_{rank}")
        code = 0
    except BaseException:  # noqa: BLE001  # whatever ends a rank is told to the test
        (folder / f"error_{rank}").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def _wait(started: list[int], folder: Path) -> None:
    left, failed = set(started), False
    deadline = time.monotonic() + TIME_LIMIT_S
    try:
        while left and not failed and time.monotonic() < deadline:
            for pid in list(left):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    left.discard(pid)
                    failed = failed or status != 0
            time.sleep(0.01)
        if failed or left:
            errors = [path.read_text() for path in sorted(folder.glob("error_*"))]
            raise RankError("\n".join(errors) or f"{len(left)} ranks still ran at the time limit")
    finally:
        for pid in started:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for pid in left:
            os.waitpid(pid, 0)
