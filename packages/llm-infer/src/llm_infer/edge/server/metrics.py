"""What Prometheus may know: requests, tokens, times. Names follow its conventions."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_OF_ENGINE = MappingProxyType(
    {
        "running_answers": ("num_running", "Answers in computation"),
        "waiting_answers": ("num_waiting", "Answers that wait for a place in the cache"),
        "preempted": ("num_preempted", "Answers that had to give their place to an older one"),
        "cache_blocks": ("cache_blocks", "Blocks of the cache"),
        "cache_blocks_held": ("cache_blocks_held", "Those of them that answers hold"),
        "started_prompt_tokens": ("prompt_tokens", "Tokens of prompts that were started"),
        "shared_prompt_tokens": ("shared_tokens", "Those of them found in the cache"),
    }
)
"""Name to the field of the engine's own counters, and what it says."""
_REQUEST_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


@dataclass(frozen=True, slots=True)
class Metrics:
    """One server's counters."""

    registry: CollectorRegistry
    requests: Counter
    prompt_tokens: Counter
    new_tokens: Counter
    first_token_s: Histogram
    request_s: Histogram

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


@runtime_checkable
class Counting(Protocol):
    """An engine that counts what it does, as the native engine."""

    @property
    def stats(self) -> object:
        """A value with the fields that `_OF_ENGINE` names."""
        ...


def metrics(engine: object, *, num_open: Callable[[], float]) -> Metrics:
    """Counters at zero; `num_open` tells how many answers are open now."""
    registry = CollectorRegistry()
    if isinstance(engine, Counting):
        for name, (field, meaning) in _OF_ENGINE.items():
            gauge = Gauge(f"llm_infer_{name}", meaning, registry=registry)
            gauge.set_function(partial(_stat, engine, field))
    open_answers = Gauge(
        "llm_infer_open_answers", "Answers that wait, run or are read", registry=registry
    )
    open_answers.set_function(num_open)
    return Metrics(
        registry=registry,
        requests=Counter(
            "llm_infer_requests", "Requests answered, by route and HTTP status; 499: client left",
            ("route", "status"), registry=registry,
        ),
        prompt_tokens=Counter(
            "llm_infer_prompt_tokens", "Tokens of prompts answered", registry=registry
        ),
        new_tokens=Counter("llm_infer_new_tokens", "Tokens generated", registry=registry),
        first_token_s=Histogram(
            "llm_infer_time_to_first_token_seconds", "From the request to its first token",
            buckets=_FIRST_TOKEN_S, registry=registry,
        ),
        request_s=Histogram(
            "llm_infer_request_seconds", "From the request to the end of its answer",
            buckets=_REQUEST_S, registry=registry,
        ),
    )  # fmt: skip


def _stat(engine: Counting, field: str) -> float:
    return float(getattr(engine.stats, field))
