"""A model on the native engine, from any folder that a weight provider opens."""

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from llm_infer.arch import Arch, parse
from llm_infer.edge import device as devices
from llm_infer.edge.choices import LoadOptions
from llm_infer.edge.guides import json_guides
from llm_infer.edge.memory import cache_tokens
from llm_infer.edge.model_folder import Loaded, check_tokenizer
from llm_infer.edge.startup import stored_bytes, weight_files
from llm_infer.edge.tokenizer import FolderTokenizer, read_tokenizer
from llm_infer.engines.guided import GuidedEngine
from llm_infer.engines.native import BLOCK_TOKENS, Limits
from llm_infer.errors import InferError
from llm_infer.kernels import Kernels, resolve
from llm_infer.model.decoder import Decoder
from llm_infer.model.int8 import reason_against as reason_against_int8
from llm_infer.model.late import LateModel
from llm_infer.model.linear import maker
from llm_infer.model.runner import Model
from llm_infer.model.static_step import CudaGraphs, Recorder
from llm_infer.model.static_step import reason_against as reason_against_replay
from llm_infer.model.support import reason_against
from llm_infer.rope_override import with_rope_scaling
from llm_infer.weights import Quantization, WeightSource, required_provider


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
    """A model, and what goes with it."""

    model: Model
    tokenizer: FolderTokenizer
    end_tokens: list[int]
    kernels: str
    """What the operators call themselves."""


def load_native(folder: Path, options: LoadOptions, *, waits: bool = True) -> Loaded:
    """The model, ready to answer.

    Unless it `waits`, weights that were read through already may be put in place afterwards:
    `Loaded.wait` returns when they are, and so does the first step.
    """
    files = weight_files(folder)
    may_be_late = not waits and bool(files) and options.lora is None
    opened = open_native(folder, options, may_be_late=may_be_late)
    model, tokenizer = opened.model, opened.tokenizer
    size = options.cache_tokens
    if size is None:
        is_late = isinstance(model, LateModel)
        to_come = stored_bytes(files) + _table_bytes(model) if is_late else 0
        size = cache_tokens_of(model, reserved_bytes=to_come)
    engine = GuidedEngine(
        model,
        end_tokens=opened.end_tokens,
        limits=Limits(cache_tokens=max(size, 2 * BLOCK_TOKENS)),
        kernels=opened.kernels,
    )
    guides = json_guides(tokenizer.serialized, end_tokens=opened.end_tokens)
    wait = model.wait if isinstance(model, LateModel) else None
    return Loaded(engine=engine, tokenizer=tokenizer, guides=guides, wait=wait)


def open_native(folder: Path, options: LoadOptions, *, may_be_late: bool = False) -> Opened:
    """The weights on their device, or on their way there, and the tokenizer."""
    check_tokenizer(folder)
    with ExitStack() as closing:
        source = open_source(folder, options.lora)
        closing.callback(source.close)
        document: Mapping[str, object] = source.arch
        if options.rope_scaling is not None:
            document = with_rope_scaling(document, options.rope_scaling)
        arch = parse(document, where=f"{folder} (arch.json)")
        if (reason := reason_against(arch)) is not None:
            raise InferError(f"the native engine cannot run this model: {reason}")
        tokenizer = read_tokenizer(folder, num_rows=arch.vocab_size)
        device = torch.device(devices.resolve(options.device))
        stored = source.dtype("embedding.word_embeddings.weight")
        dtype = stored if options.dtype == "auto" else getattr(torch, options.dtype)
        if options.quantization is not None and (reason := reason_against_int8(device)) is not None:
            raise InferError(f"--quantization {options.quantization}: {reason}")
        kernels = resolve(options.kernels, device=device.type)
        quantization = options.quantization
        make = partial(
            _decoder,
            arch,
            source,
            kernels,
            device=device,
            dtype=dtype,
            quantization=quantization,
            recorder=_recorder(arch, device) if options.cuda_graphs else None,
        )
        # Weights of another type than stored take memory that the files' sizes do not tell.
        if may_be_late and dtype == stored and quantization is None:
            held = closing.pop_all()
            model = LateModel(
                lambda: _then_closed(make, held), arch=arch, device=device, dtype=dtype
            )
        else:
            model = make()
    return Opened(
        model=model,
        tokenizer=tokenizer,
        end_tokens=_end_tokens(folder, tokenizer.end_token),
        kernels=str(kernels),
    )


def cache_tokens_of(model: Model, *, reserved_bytes: int = 0) -> int:
    """A cache that fits the machine, where `reserved_bytes` are still to be taken."""
    token_bytes = sum(
        shape.bytes_of_token(element_bytes=model.dtype.itemsize, block_tokens=BLOCK_TOKENS)
        for shape in model.cache_shapes
        if shape is not None
    )
    return cache_tokens(
        context=-(-model.context // BLOCK_TOKENS) * BLOCK_TOKENS,
        token_bytes=token_bytes,
        device=model.device,
        reserved_bytes=reserved_bytes,
    )


def _decoder(
    arch: Arch,
    source: WeightSource,
    kernels: Kernels,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantization: Quantization | None,
    recorder: Recorder | None,
) -> Decoder:
    try:
        return Decoder(
            arch,
            source,
            kernels,
            make_linear=maker(device),
            device=device,
            dtype=dtype,
            context=arch.max_position_embeddings,
            block_tokens=BLOCK_TOKENS,
            quantization=quantization,
            recorder=recorder,
        )
    except ValueError as error:
        # How a weight provider refuses.
        raise InferError(str(error)) from error


def _recorder(arch: Arch, device: torch.device) -> Recorder | None:
    """What replays steps there; None where they are computed one by one."""
    if device.type != "cuda" or reason_against_replay(arch) is not None:
        return None
    return CudaGraphs()


def _then_closed(make: Callable[[], Decoder], held: ExitStack) -> Decoder:
    with held:
        return make()


def _table_bytes(model: Model) -> int:
    """Of the second copy of a tied table."""
    arch = model.arch
    return arch.vocab_size * arch.hidden_size * model.dtype.itemsize if arch.tie_embeddings else 0


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
