"""Batches of chat records, and the rows of the columns a task makes of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import orjson

from llm_data.encode import EncodedBatch, EncoderSpec
from llm_data.messages import Sample
from llm_data.records import Batch, Place, Record, Shape


def batch_of(*bodies: object) -> Batch:
    """The objects as records, numbered from 1; bytes are taken as they stand."""
    payloads = [body if isinstance(body, bytes) else orjson.dumps(body) for body in bodies]
    records = [
        Record(Place(0, number, number), Shape.JSON, payload)
        for number, payload in enumerate(payloads, 1)
    ]
    return Batch(parts=records, payload_bytes=sum(map(len, payloads)))


def rows_of(encoded: EncodedBatch, spec: EncoderSpec) -> dict[str, list[list[int]]]:
    """Column name to rows."""
    found = {}
    for column, made in zip(spec.columns, encoded.columns, strict=True):
        lengths = np.frombuffer(made.lengths, np.int32)
        tokens = np.frombuffer(made.tokens, np.dtype(column.dtype))
        parts = np.split(tokens, np.cumsum(lengths)[:-1]) if len(lengths) else []
        assert sum(map(len, parts)) == len(tokens)
        found[column.name] = [part.tolist() for part in parts]
    return found


@dataclass(frozen=True)
class ReadBy:
    """A reader of records that is a function of a test module."""

    read: Callable[[Mapping[str, object]], Sample]

    def build(self) -> Callable[[Mapping[str, object]], Sample]:
        return self.read
