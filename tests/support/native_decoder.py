"""The native decoder and engine of llm-infer over a folder, and whole texts through them."""

from dataclasses import replace

import torch

from llm_ckpt.source import open_source
from llm_infer.arch import parse
from llm_infer.edge.operators import resolve
from llm_infer.engines.native import Limits, NativeEngine
from llm_infer.model.decoder import Decoder
from llm_infer.model.steps import Part, make_pools, make_step


def open_decoder(
    folder,
    *,
    block_tokens=16,
    context=None,
    dtype=torch.float32,
    quantization=None,
    kernels=None,
):
    """A decoder of any format that llm-ckpt reads."""
    with open_source(folder) as source:
        arch = parse(source.arch, where=str(folder))
        return Decoder(
            arch,
            source,
            kernels or resolve("auto", device="cpu", dtype=dtype),
            device=torch.device("cpu"),
            dtype=dtype,
            context=context or arch.max_position_embeddings,
            block_tokens=block_tokens,
            quantization=quantization,
        )


def engine_of(decoder, *, end_tokens=(), cache_tokens=4096, **limits):
    """A native engine with blocks of 16 tokens, so that short texts have several."""
    limits = Limits(cache_tokens=cache_tokens, block_tokens=16, **limits)
    return NativeEngine(decoder, end_tokens=end_tokens, limits=limits, kernels="plain torch")


def run(engine, requests):
    """Tokens of each (prompt, sampling), all submitted at once."""
    numbers = [engine.submit(prompt, sampling) for prompt, sampling in requests]
    found = {number: [] for number in numbers}
    while engine.has_work:
        for event in engine.step():
            assert event.failure is None, event
            if event.token is not None:
                found[event.request].append(event.token)
    return [found[number] for number in numbers]


def logits_of(decoder, tokens, *, cuts=(), block_tokens=16, is_long=False):
    """Logits [B, T, V] of tokens [B, T]; each text goes through in steps that end at `cuts`."""
    batch, length = tokens.shape
    each = -(-length // block_tokens)
    pools = make_pools(decoder, num_blocks=batch * each, block_tokens=block_tokens)
    for pool in pools:
        if pool is not None:
            pool.clear(0, batch * each * block_tokens)
    blocks = [list(range(row * each, (row + 1) * each)) for row in range(batch)]
    found = []
    for start, stop in zip((0, *cuts), (*cuts, length), strict=True):
        parts = [
            Part(
                tokens=tokens[row, start:stop].tolist(),
                first=start,
                blocks=blocks[row],
                wants_logits=True,
                is_long=is_long,
                num_prompt=length,
            )
            for row in range(batch)
        ]
        step = make_step(parts, block_tokens=block_tokens, decoder=decoder)
        rows = torch.arange(batch * (stop - start))
        step = replace(step, last_rows=rows)
        found.append(decoder.forward(step, pools).view(batch, stop - start, -1))
    return torch.cat(found, dim=1)
