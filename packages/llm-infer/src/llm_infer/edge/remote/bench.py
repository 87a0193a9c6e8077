"""`llm-infer bench` of a server: the same two measurements, through its API."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

import click

from llm_infer.edge.bench import Timing, print_timing
from llm_infer.edge.remote.model import RemoteModel, RemoteStream
from llm_infer.errors import InferError
from llm_infer.sampling import Sampling

_WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog")


def report(model: RemoteModel, *, prompt_tokens: int, new_tokens: int, requests: int) -> None:
    """Measure and print. Prompts are words, one a token or more, and counted as the server does."""
    draw = random.Random(0)

    def ask(_: int) -> RemoteStream:
        prompt = " ".join(draw.choice(_WORDS) for _ in range(prompt_tokens))
        stream = model.complete(prompt, Sampling(max_new_tokens=new_tokens))
        stream.finished()
        if stream.first_token_s is None:
            raise InferError("the model ended its answer at once; nothing can be measured")
        return stream

    ask(0)
    alone = ask(0)
    if alone.first_token_s is None or alone.tokens_per_s is None:
        raise InferError("the model ended its answer at once; nothing can be measured")
    timing = Timing(first_token_s=alone.first_token_s, tokens_per_s=alone.tokens_per_s)
    print_timing("one request", timing, alone.num_prompt_tokens or prompt_tokens)
    start_s = time.perf_counter()
    with ThreadPoolExecutor(requests) as pool:
        streams = list(pool.map(ask, range(requests)))
    elapsed_s = time.perf_counter() - start_s
    timing = Timing(
        first_token_s=max(one.first_token_s or elapsed_s for one in streams),
        tokens_per_s=sum(one.num_tokens for one in streams) / elapsed_s,
    )
    num_prompt = sum(one.num_prompt_tokens or prompt_tokens for one in streams)
    print_timing(f"{requests} requests together", timing, num_prompt)
    click.echo("as the server's clients see it; its answers may have ended early")
