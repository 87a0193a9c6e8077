"""`llm-infer bench`: how fast a model answers here, alone and together."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import click

from llm_infer.edge.model_folder import Loaded
from llm_infer.engine import BatchEngine, Engine
from llm_infer.errors import InferError
from llm_infer.sampling import Sampling

_WARM_UP_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds until every request has its first token, and tokens a second.

    The rate of one request is that after its first token, of several that of the whole time.
    """

    first_token_s: float
    tokens_per_s: float


def report(loaded: Loaded, *, prompt_tokens: int, new_tokens: int, requests: int) -> None:
    """Measure and print one line a measurement."""
    engine = loaded.engine
    if prompt_tokens + new_tokens > engine.context_length:
        raise InferError(
            f"--prompt-tokens({prompt_tokens}) + --new-tokens({new_tokens}) = "
            f"{prompt_tokens + new_tokens}, but the context is {engine.context_length}"
        )
    # Tokens that any vocabulary has, each prompt different so that none shares a prefix.
    words = sorted(set(loaded.tokenizer.encode("The quick brown fox jumps over the lazy dog.")))
    draw = random.Random(0)

    def prompts(count: int) -> list[list[int]]:
        return [[draw.choice(words) for _ in range(prompt_tokens)] for _ in range(count)]

    is_native = isinstance(engine, BatchEngine)
    sampling = Sampling(max_new_tokens=new_tokens, ignores_end=is_native)
    for _ in engine.generate(prompts(1)[0], Sampling(max_new_tokens=_WARM_UP_TOKENS)):
        pass
    print_timing("one request", alone(engine, prompts(1)[0], sampling), prompt_tokens)
    if not isinstance(engine, BatchEngine):
        click.echo("several together: this engine answers one at a time")
        return
    timing = together(engine, prompts(requests), sampling)
    print_timing(f"{requests} requests together", timing, prompt_tokens * requests)


def alone(engine: Engine, prompt: list[int], sampling: Sampling) -> Timing:
    """One request by itself."""
    start_s, times_s = time.perf_counter(), list[float]()
    for _ in engine.generate(prompt, sampling):
        times_s.append(time.perf_counter())
    if len(times_s) < 2:
        raise InferError("the model ended its answer at once; nothing can be measured")
    rate = (len(times_s) - 1) / (times_s[-1] - times_s[0])
    return Timing(first_token_s=times_s[0] - start_s, tokens_per_s=rate)


def together(engine: BatchEngine, prompts: list[list[int]], sampling: Sampling) -> Timing:
    """All submitted at once."""
    start_s = time.perf_counter()
    seen, times_s = set[int](), list[float]()
    first_s = start_s
    for prompt in prompts:
        engine.submit(prompt, sampling)
    for request in _tokens(engine):
        times_s.append(time.perf_counter())
        if request not in seen:
            seen.add(request)
            first_s = times_s[-1]
    rate = len(times_s) / (times_s[-1] - start_s) if times_s else 0.0
    return Timing(first_token_s=first_s - start_s, tokens_per_s=rate)


def _tokens(engine: BatchEngine) -> Iterator[int]:
    """The request of each token that comes."""
    while engine.has_work:
        for event in engine.step():
            if event.failure is not None:
                raise event.failure
            if event.token is not None:
                yield event.request


def print_timing(label: str, timing: Timing, prompt_tokens: int) -> None:
    """One line of the report; `prompt_tokens` counts those of all requests in it."""
    prefill = prompt_tokens / timing.first_token_s
    click.echo(
        f"{label}: first token after {timing.first_token_s:.3f} s "
        f"(prompt {prefill:.0f} tokens/s), {timing.tokens_per_s:.1f} tokens/s"
    )
