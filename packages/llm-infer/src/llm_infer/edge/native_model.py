"""A model on the native engine, from any folder that a weight provider opens."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_infer.edge import device as devices
from llm_infer.edge.choices import LoadOptions
from llm_infer.edge.decoders import arch_of, open_source, plan_of
from llm_infer.edge.guides import json_guides
from llm_infer.edge.memory import cache_tokens
from llm_infer.edge.model_folder import Loaded, check_tokenizer, nothing
from llm_infer.edge.startup import stored_bytes, weight_files
from llm_infer.edge.tokenizer import FolderTokenizer, read_tokenizer
from llm_infer.engines.native import BLOCK_TOKENS, Limits
from llm_infer.engines.prompted import PromptedEngine
from llm_infer.engines.tensor_parallel import SharedModel
from llm_infer.errors import InferError
from llm_infer.model.decoder import Decoder
from llm_infer.model.group import ALONE
from llm_infer.model.late import LateModel
from llm_infer.model.runner import Model
from llm_infer.model.support import reason_against, require_runnable

if TYPE_CHECKING:
    from llm_infer.edge.ranks.lead import Lead


def reason_against_native(folder: Path, options: LoadOptions) -> str | None:
    """Why the native engine cannot run what lies in a folder; None when it can."""
    try:
        source = open_source(folder, options.lora)
    except InferError as error:
        return str(error)
    try:
        return reason_against(arch_of(source, folder, LoadOptions()))
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
    close: Callable[[], None] = nothing
    """Ends the processes of other ranks."""


def load_native(folder: Path, options: LoadOptions, *, waits: bool = True) -> Loaded:
    """The model, ready to answer.

    Unless it `waits`, weights that were read through already may be put in place afterwards:
    `Loaded.wait` returns when they are, and so does the first step.
    """
    files = weight_files(folder)
    may_be_late = not waits and bool(files) and options.lora is None and options.tp == 1
    opened = open_native(folder, options, may_be_late=may_be_late)
    model, tokenizer = opened.model, opened.tokenizer
    size = options.cache_tokens
    if size is None:
        is_late = isinstance(model, LateModel)
        to_come = stored_bytes(files) + _table_bytes(model) if is_late else 0
        size = cache_tokens_of(model, reserved_bytes=to_come)
    engine = PromptedEngine(
        model,
        end_tokens=opened.end_tokens,
        limits=Limits(cache_tokens=max(size, 2 * BLOCK_TOKENS)),
        kernels=opened.kernels,
    )
    guides = json_guides(tokenizer.serialized, end_tokens=opened.end_tokens)
    wait = model.wait if isinstance(model, LateModel) else None
    return Loaded(engine=engine, tokenizer=tokenizer, guides=guides, wait=wait, close=opened.close)


def open_native(folder: Path, options: LoadOptions, *, may_be_late: bool = False) -> Opened:
    """The weights on their devices, or on their way there, and the tokenizer."""
    check_tokenizer(folder)
    if options.tp == 1:
        return _opened(folder, options, None, may_be_late=may_be_late)
    devices.require_ranks(options.device, options.tp)
    from llm_infer.edge.ranks.lead import Lead

    lead = Lead(options.tp, device=devices.resolve(options.device))
    try:
        return _opened(folder, options, lead, may_be_late=False)
    except BaseException:
        lead.close()
        raise


def _opened(
    folder: Path, options: LoadOptions, lead: "Lead | None", *, may_be_late: bool
) -> Opened:
    with ExitStack() as closing:
        source = open_source(folder, options.lora)
        closing.callback(source.close)
        arch = arch_of(source, folder, options)
        require_runnable(arch, ranks=options.tp)
        tokenizer = read_tokenizer(folder, num_rows=arch.vocab_size)
        if lead is not None:
            lead.load(folder, options)
        plan = plan_of(arch, source, options, group=ALONE if lead is None else lead.group)
        # Weights of another type than stored take memory that the files' sizes do not tell.
        if may_be_late and plan.is_as_stored:
            held = closing.pop_all()
            model: Model = LateModel(
                lambda: _then_closed(plan.read, held),
                arch=arch,
                device=plan.device,
                dtype=plan.dtype,
                place=plan.place,
            )
        else:
            decoder = plan.read()
            model = decoder if lead is None else SharedModel(decoder, lead)
    if lead is not None:
        lead.join()
    return Opened(
        model=model,
        tokenizer=tokenizer,
        end_tokens=_end_tokens(folder, tokenizer.end_token),
        kernels=str(plan.kernels),
        close=nothing if lead is None else lead.close,
    )


def cache_tokens_of(model: Model, *, reserved_bytes: int = 0) -> int:
    """A cache that fits the machine, where `reserved_bytes` are still to be taken."""
    token_bytes = sum(
        shape.bytes_of_token(element_bytes=model.dtype.itemsize, block_tokens=BLOCK_TOKENS)
        for shape in model.cache_shapes
        if shape is not None
    )
    # Ranks on a CPU have one memory, on other devices one each.
    has_ranks = isinstance(model, SharedModel)
    sharers = model.num_ranks if has_ranks and model.device.type == "cpu" else 1
    return cache_tokens(
        context=-(-model.context // BLOCK_TOKENS) * BLOCK_TOKENS,
        token_bytes=token_bytes * sharers,
        device=model.device,
        reserved_bytes=reserved_bytes,
    )


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
