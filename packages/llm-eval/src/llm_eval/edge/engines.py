"""Engines by name, opened in this process or in several."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from llm_eval.edge import device, model_folder, quiet, scorers
from llm_eval.errors import EvalError
from llm_eval.harness.engine import Answer, Engine, Scheduler, Serial, Work

HF, SERVER = "hf", "server"
T = TypeVar("T")
# Blocks that wait in each process, so that none is ever idle.
_QUEUED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """Which engine over which model; plain values, so that another process can open the same."""

    scorer: str
    model: Path
    device: device.DeviceName
    dtype: str
    batch_size: int
    max_length: int | None
    threads: int
    base_url: str | None
    retries: int

    def planner(self, ask: Callable[..., Any]) -> Engine:
        """An engine that plans, without a model's weights; `ask` calls one that scores."""
        if self.scorer == HF:
            return self._open_hf(plans_only=True)
        if self.scorer == SERVER:
            return self.open()
        from llm_eval.harness.scorer_engine import Planner

        scorers.require(self.scorer)
        return Planner(batch_size=self.batch_size, ask=ask)

    def open(self) -> Engine:
        """Load the model."""
        if self.scorer == HF:
            return self._open_hf(plans_only=False)
        from llm_eval.harness.scorer_engine import ChunkEngine, scorer_engine

        if self.scorer == SERVER:
            return ChunkEngine(
                _server(self),
                batch_size=self.batch_size,
                retries=self.retries,
                options={"disable_tqdm": True},
            )
        scorer = scorers.open_scorer(
            self.scorer,
            self.model,
            device=self.device,
            dtype=self.dtype,
            batch_size=self.batch_size,
            max_length=self.max_length,
            threads=self.threads,
        )
        return scorer_engine(scorer, batch_size=self.batch_size)

    def _open_hf(self, *, plans_only: bool) -> Engine:
        import torch

        from llm_eval.harness.hf_engine import HFEngine

        torch.set_num_threads(self.threads)
        if plans_only:
            model, tokenizer = model_folder.outline(self.model)
        else:
            where = device.resolve(self.device)
            model, tokenizer = model_folder.load(self.model, device=where, dtype=self.dtype)
        context = getattr(model.config, "max_position_embeddings", None)
        if self.max_length and context and self.max_length > context:
            raise EvalError(f"--max-length {self.max_length}: the model's context is {context}")
        return HFEngine(model, tokenizer, max_length=self.max_length)


class Engines:
    """An engine to plan with and the processes that score; use as a context manager."""

    def __init__(self, choice: EngineChoice, *, num_processes: int) -> None:
        self._choice = choice
        self._num_processes = num_processes
        self._pool: _Pool | None = None
        self.engine: Engine
        self.scheduler: Scheduler

    def __enter__(self) -> Self:
        if self._num_processes == 1:
            self.engine = self._choice.open()
            self.scheduler = Serial(self.engine)
        else:
            self.scheduler = self._pool = _Pool(self._choice, self._num_processes)
            self.engine = self._choice.planner(self._pool.ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.close()


class _Pool:
    """Blocks go to whichever process is free; which one that is changes no score."""

    def __init__(self, choice: EngineChoice, num_processes: int) -> None:
        self._num_processes = num_processes
        self._executor = ProcessPoolExecutor(
            num_processes,
            mp_context=get_context("spawn"),
            initializer=_open_in_process,
            initargs=(choice, os.getpid()),
        )

    def answers(self, works: Iterable[Work]) -> Iterator[tuple[Work, list[Answer]]]:
        """Each block with its answers, in the order in which they are ready."""
        waiting: dict[Future[list[Answer]], Work] = {}
        source = iter(works)
        while True:
            while len(waiting) < _QUEUED * self._num_processes:
                work = next(source, None)
                if work is None:
                    break
                waiting[self._executor.submit(_score_in_process, work)] = work
            if not waiting:
                return
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                work = waiting.pop(future)
                yield work, _result(future)

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of the engine says in whichever process is free."""
        return _result(self._executor.submit(_ask_in_process, method, arguments))

    def close(self) -> None:
        """End the processes; what they still compute is dropped."""
        self._executor.shutdown(wait=True, cancel_futures=True)


# The engine of a scoring process: the one thing that outlives a call there.
_opened: dict[str, Engine] = {}


def _open_in_process(choice: EngineChoice, parent: int) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    quiet.quiet()
    try:
        _opened["engine"] = choice.open()
    except EvalError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201 - the parent only sees the end
        raise


def _result(future: Future[T]) -> T:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise EvalError(
            "a scoring process ended (out of memory, or its model did not load; "
            "see above); what was scored is kept, run the same command again"
        ) from error


def _ask_in_process(method: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(_opened["engine"], method)(*arguments)


def _score_in_process(work: Work) -> list[Answer]:
    return _opened["engine"].score(work)


def _end_with(parent: int) -> None:
    """A parent killed with SIGKILL cannot end its processes; they notice."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _server(choice: EngineChoice) -> Any:
    """lm-eval's client of the OpenAI completions API."""
    missing = [name for name in ("tenacity", "aiohttp", "requests") if not find_spec(name)]
    if missing:
        raise EvalError(
            f"{' and '.join(missing)} not installed; the server engine needs\n"
            "  pip install 'llm-eval[server]'"
        )
    from lm_eval.models import openai_completions

    is_folder = choice.model.is_dir()
    base = str(choice.base_url).rstrip("/")
    url = base if base.endswith("/completions") else f"{base}/completions"
    # The decorator that registers the class hides it from a type checker.
    client: Any = openai_completions.LocalCompletionsAPI
    return client(
        base_url=url,
        model=choice.model.name if is_folder else str(choice.model),
        tokenizer=str(choice.model) if is_folder else None,
        tokenizer_backend="huggingface" if is_folder else None,
        batch_size=choice.batch_size,
        # We ask again ourselves, with a longer patience.
        max_retries=1,
        num_concurrent=1,
        max_length=choice.max_length or 2048,
    )
