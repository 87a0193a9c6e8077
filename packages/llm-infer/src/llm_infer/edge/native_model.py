"""A model on the native engine, from any folder that a weight provider opens."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from llm_infer.arch import Arch, parse
from llm_infer.edge import device as devices
from llm_infer.edge.choices import LoadOptions
from llm_infer.edge.guides import json_guides
from llm_infer.edge.memory import cache_tokens
from llm_infer.edge.model_folder import Loaded, check_tokenizer
from llm_infer.edge.tokenizer import FolderTokenizer, read_tokenizer
from llm_infer.engines.guided import GuidedEngine
from llm_infer.engines.native import BLOCK_TOKENS, Limits
from llm_infer.errors import InferError
from llm_infer.kernels import resolve
from llm_infer.model.decoder import Decoder
from llm_infer.model.int8 import reason_against as reason_against_int8
from llm_infer.model.linear import maker
from llm_infer.model.support import reason_against
from llm_infer.rope_override import with_rope_scaling
from llm_infer.weights import WeightSource, required_provider


def open_source(folder: Path, adapter: Path | None) -> WeightSource:
    """The weights under `folder`, with an adapter merged in."""
    open_weights = required_provider(folder)
    try:
        return open_weights(folder, adapter=adapter)
    except ValueError as error:
        raise InferError(str(error)) from error


def reason_against_native(folder: Path, options: LoadOptions) -> str | None:
    """Why the native engine cannot run what lies in a folder; None when it can."""
    try:
        source = open_source(folder, options.lora)
    except InferError as error:
        return str(error)
    try:
        return reason_against(parse(source.arch, where=f"{folder} (arch.json)"))
    finally:
        source.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A decoder with its weights read, and what goes with it."""

    decoder: Decoder
    tokenizer: FolderTokenizer
    end_tokens: list[int]
    kernels: str
    """What the operators call themselves."""


def load_native(folder: Path, options: LoadOptions) -> Loaded:
    """The model with its weights read, ready to answer."""
    opened = open_native(folder, options)
    decoder, tokenizer = opened.decoder, opened.tokenizer
    size = cache_tokens_of(decoder) if options.cache_tokens is None else options.cache_tokens
    engine = GuidedEngine(
        decoder,
        end_tokens=opened.end_tokens,
        limits=Limits(cache_tokens=max(size, 2 * BLOCK_TOKENS)),
        kernels=opened.kernels,
    )
    guides = json_guides(tokenizer.serialized, end_tokens=opened.end_tokens)
    return Loaded(engine=engine, tokenizer=tokenizer, guides=guides)


def open_native(folder: Path, options: LoadOptions) -> Opened:
    """The weights on their device, and the tokenizer."""
    check_tokenizer(folder)
    source = open_source(folder, options.lora)
    try:
        document: Mapping[str, object] = source.arch
        if options.rope_scaling is not None:
            document = with_rope_scaling(document, options.rope_scaling)
        arch = parse(document, where=f"{folder} (arch.json)")
        tokenizer = read_tokenizer(folder, num_rows=arch.vocab_size)
        decoder, kernels = _decoder(arch, source, options)
    finally:
        source.close()
    end_tokens = _end_tokens(folder, tokenizer.end_token)
    return Opened(decoder=decoder, tokenizer=tokenizer, end_tokens=end_tokens, kernels=kernels)


def cache_tokens_of(decoder: Decoder) -> int:
    """A cache that fits the machine."""
    element_bytes = torch.empty((), dtype=decoder.dtype).element_size()
    token_bytes = sum(
        shape.bytes_of_token(element_bytes=element_bytes, block_tokens=BLOCK_TOKENS)
        for shape in decoder.cache_shapes
        if shape is not None
    )
    return cache_tokens(
        context=-(-decoder.context // BLOCK_TOKENS) * BLOCK_TOKENS,
        token_bytes=token_bytes,
        device=decoder.device,
    )


def _decoder(arch: Arch, source: WeightSource, options: LoadOptions) -> tuple[Decoder, str]:
    device = torch.device(devices.resolve(options.device))
    stored = source.dtype("embedding.word_embeddings.weight")
    dtype = stored if options.dtype == "auto" else getattr(torch, options.dtype)
    if options.quantization is not None and (reason := reason_against_int8(device)) is not None:
        raise InferError(f"--quantization {options.quantization}: {reason}")
    kernels = resolve(options.kernels, device=device.type)
    decoder = Decoder(
        arch,
        source,
        kernels,
        make_linear=maker(device),
        device=device,
        dtype=dtype,
        context=arch.max_position_embeddings,
        block_tokens=BLOCK_TOKENS,
        quantization=options.quantization,
    )
    return decoder, str(kernels)


def _end_tokens(folder: Path, end_token: int | None) -> list[int]:
    """Where to end: generation_config.json, else config.json, else the tokenizer's."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            try:
                found = json.loads(path.read_bytes()).get("eos_token_id")
            except (ValueError, AttributeError) as error:
                raise InferError(f"{path}: not a JSON object ({error})") from None
            if found is not None:
                return [int(one) for one in (found if isinstance(found, list) else [found])]
    return [] if end_token is None else [end_token]
