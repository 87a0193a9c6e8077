"""A worker process: `python -m llm_data.edge.runs.worker_process INBOX OUTBOX [MODULE...]`.

INBOX and OUTBOX are open pipes; the modules are loaded while nothing has come yet.

A message is an EncoderSpec, from which on it is the one that encodes, or a Batch, or a Question;
the answers are encoded batches and lists of ids, or a DataError, which is the end of a process
unless it answers a Question. A spec that nothing is encoded with may fail. It ends when its parent
closes the pipes or dies.
"""

import os
import sys
import threading
from importlib import import_module
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Protocol, cast

from llm_data.backends.backend import Backend, Question, TokenIds
from llm_data.encode import Encoder, EncoderSpec
from llm_data.errors import DataError
from llm_data.records import Batch

PARALLEL = "TOKENIZERS_PARALLELISM"


class _Backed(Protocol):
    backend: Backend


def work(inbox: "Connection[object]", outbox: "Connection[object]") -> None:
    """Encode what arrives, in order."""
    os.environ[PARALLEL] = "false"
    waiting: SimpleQueue[object] = SimpleQueue()
    # A thread takes batches off the pipe at once, so that the parent never blocks on sending
    # while this process blocks on sending back.
    threading.Thread(target=_receive_all, args=(inbox, waiting), daemon=True).start()
    encoder: Encoder | DataError | None = None
    while (message := waiting.get()) is not None:
        try:
            if isinstance(message, EncoderSpec):
                encoder = _built(message)
            elif isinstance(message, Question):
                outbox.send(_answered(message, encoder))
            elif isinstance(encoder, DataError):
                raise encoder
            elif encoder is not None and isinstance(message, Batch):
                outbox.send(encoder(message))
        except DataError as error:
            outbox.send(error)
            return


def _built(spec: EncoderSpec) -> Encoder | DataError:
    try:
        return spec.build()
    except DataError as error:
        return error


def _answered(
    question: Question, encoder: Encoder | DataError | None
) -> list[TokenIds] | DataError:
    if isinstance(encoder, DataError):
        return encoder
    return list(cast(_Backed, encoder).backend.encode(question.texts))


def _receive_all(inbox: "Connection[object]", waiting: "SimpleQueue[object]") -> None:
    try:
        while True:
            waiting.put(inbox.recv())
    except (EOFError, OSError):
        waiting.put(None)


if __name__ == "__main__":
    for module in sys.argv[3:]:
        import_module(module)
    try:
        work(
            Connection(int(sys.argv[1]), writable=False),
            Connection(int(sys.argv[2]), readable=False),
        )
    except (BrokenPipeError, ConnectionResetError):
        # The parent is gone; so are those who would have wanted the result.
        sys.exit(1)
