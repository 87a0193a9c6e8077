"""A rank other than 0: a process that rank 0 starts.

It is told by its stdin what to do, answers by its stdout, and ends with its stdin or with rank 0.
"""

import os
import pickle
import sys
import threading
import time
from collections.abc import Iterator
from typing import BinaryIO

from llm_infer.edge.decoders import arch_of, open_source, plan_of
from llm_infer.edge.ranks import joining
from llm_infer.edge.ranks.messages import Failed, Join, Load, Loaded, Message
from llm_infer.engines.tensor_parallel import Follower
from llm_infer.errors import InferError
from llm_infer.model.decoder import Decoder
from llm_infer.model.group import Ranks

_LOOK_EVERY_S = 0.5


def main() -> None:
    """`python -m llm_infer.edge.ranks.follower RANK SIZE PARENT`."""
    rank, size, parent = map(int, sys.argv[1:])
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    # Whatever prints goes to stderr: stdout has answers to rank 0.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    joining.share_threads(size)
    try:
        _serve(_messages(sys.stdin.buffer), answers, Ranks(rank, size))
    except Exception as error:  # noqa: BLE001  whatever ends a rank is told by rank 0
        is_ours = isinstance(error, InferError)
        _answer(answers, Failed(str(error) if is_ours else f"{type(error).__name__}: {error}"))
        os._exit(1)
    # Not through torch's own ending, which waits for ranks that may be gone.
    os._exit(0)


def _serve(messages: Iterator[Message], answers: BinaryIO, group: Ranks) -> None:
    follower: Follower | None = None
    device = ""
    for message in messages:
        if isinstance(message, Load):
            decoder = _loaded(message, group)
            follower, device = Follower(decoder), str(decoder.device)
            _answer(answers, Loaded())
        elif isinstance(message, Join):
            store = joining.store_at(message.port, group.size)
            joining.join(store, rank=group.rank, size=group.size, device=device)
        else:
            assert follower is not None, "a model is loaded before anything is computed"
            follower.obey(message)


def _loaded(message: Load, group: Ranks) -> Decoder:
    source = open_source(message.folder, message.options.lora)
    try:
        arch = arch_of(source, message.folder, message.options)
        return plan_of(arch, source, message.options, group=group).read()
    finally:
        source.close()


def _messages(stream: BinaryIO) -> Iterator[Message]:
    """What rank 0 sends, until it ends."""
    while True:
        try:
            yield pickle.load(stream)
        except EOFError:
            return


def _answer(stream: BinaryIO, answer: Loaded | Failed) -> None:
    try:
        pickle.dump(answer, stream)
        stream.flush()
    except BrokenPipeError:
        # Rank 0 is gone, and the error may be that.
        return


def _end_with(parent: int) -> None:
    """A rank 0 that was killed cannot end this process; and a collective may never return."""
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
    os._exit(1)


if __name__ == "__main__":
    main()
