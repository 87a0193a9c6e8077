"""Command-line options that several commands share, and the values made of them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast, get_args

import click

from llm_infer.chat import checked_variables
from llm_infer.edge.choices import ENGINES, LoadOptions
from llm_infer.edge.device import CHOICES as DEVICES
from llm_infer.sampling import Beams, EarlyStopping, Sampling
from llm_infer.thinking import ToldIn
from llm_infer.weights import Quantization

_DEFAULT = Sampling()
REMOTE = "openai:"
_DTYPES = ("auto", "float32", "bfloat16", "float16")


class _Engine(click.ParamType):
    """One of ours, or the address of a server."""

    name = "auto|native|transformers|openai:URL"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in ENGINES and not value.startswith(REMOTE):
            self.fail(f"{value!r} is none of {self.name}", param, ctx)
        return value


class _Variables(click.ParamType):
    """A JSON object of names that chat templates know."""

    name = "JSON"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, object]:
        try:
            found: object = json.loads(value)
            if not isinstance(found, dict):
                self.fail(f"{value}: want a JSON object", param, ctx)
            return checked_variables(cast("dict[str, object]", found))
        except ValueError as error:
            self.fail(f"{value}: {error}", param, ctx)


class _TokenBias(click.ParamType):
    """A token's number and what is added to its logit."""

    name = "TOKEN=NUMBER"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, float]:
        token, _, bias = value.partition("=")
        try:
            return int(token), float(bias)
        except ValueError:
            self.fail(f"{value!r}: want {self.name}, such as 42=-100", param, ctx)


SAMPLING = (
    click.option("--max-new-tokens", type=int, default=_DEFAULT.max_new_tokens, show_default=True),
    click.option("--temperature", type=float, default=_DEFAULT.temperature, show_default=True,
                 help="0 takes the likeliest token."),
    click.option("--top-k", type=int, default=_DEFAULT.top_k, show_default=True,
                 help="Draw among the k likeliest; 0 is off."),
    click.option("--top-p", type=float, default=_DEFAULT.top_p, show_default=True,
                 help="Draw among the likeliest that reach this probability; 1 is off."),
    click.option("--min-p", type=float, default=_DEFAULT.min_p, show_default=True,
                 help="Draw among those at least so likely beside the likeliest; 0 is off."),
    click.option("--repetition-penalty", type=float, default=_DEFAULT.repetition_penalty,
                 show_default=True, help="Above 1: what was seen already becomes less likely."),
    click.option("--presence-penalty", type=float, default=_DEFAULT.presence_penalty,
                 show_default=True, help="Taken from the logits of tokens of the answer."),
    click.option("--frequency-penalty", type=float, default=_DEFAULT.frequency_penalty,
                 show_default=True, help="The same, times how often they occur."),
    click.option("--logit-bias", type=_TokenBias(), multiple=True,
                 help="Added to the logit of a token, by its number; -100 to 100; may be given "
                 "more than once."),
    click.option("--seed", type=int, default=_DEFAULT.seed, show_default=True),
    click.option("--stop", multiple=True, metavar="TEXT",
                 help="End before this text; may be given more than once."),
)  # fmt: skip
BEAMS = (
    click.option("--num-beams", type=click.IntRange(min=1), default=1, show_default=True,
                 help="Native engine: search for the likeliest text with so many beams. With a "
                 "--temperature candidates are drawn. 1 is off."),
    click.option("--length-penalty", type=float, metavar="POWER",
                 help="Of beams: log-probabilities are divided by the length to this power; "
                 "above 0 favours long texts.  [default: 1.0]"),
    click.option("--early-stopping", type=click.Choice(get_args(EarlyStopping)),
                 help="Of beams: end at as many ended texts as beams (true), once none can "
                 "become better (never), or once none seems to (false).  [default: false]"),
)  # fmt: skip
TOLD = (
    click.option("--num-return-sequences", type=click.IntRange(min=1), default=1,
                 show_default=True, metavar="N",
                 help="Of beams: tell the N best texts of each prompt."),
    click.option("--logprobs", type=click.IntRange(min=0, max=20), metavar="N",
                 help="In --json and --output: the log-probability of each token, and of the N "
                 "likeliest in its place."),
)  # fmt: skip
LOADING = (
    click.option("--engine", type=_Engine(), default="auto", show_default=True,
                 help="auto: native where it can run the model, else transformers. "
                 "openai:URL asks a server for its model of that name."),
    click.option("--device", type=click.Choice(DEVICES), default="auto",
                 show_default=True, help="auto: CUDA, else NPU, else CPU."),
    click.option("--dtype", type=click.Choice(_DTYPES), default="auto", show_default=True,
                 help="auto: as the model was saved; compiled operators (see --kernels) compute in "
                 "float32."),
    click.option("--quantization", type=click.Choice(get_args(Quantization)),
                 help="Native engine on a CPU: large weights as 8-bit integers, a quarter of "
                 "float32's memory."),
    click.option("--kernels", default="auto", show_default=True, metavar="NAME",
                 help="Operators of the native engine: compiled (float32 on a CPU, in C), torch, "
                 "or a provider's name. auto: compiled where it can be, else torch."),
    click.option("--lora", type=click.Path(path_type=Path), metavar="FOLDER",
                 help="LoRA adapter to merge into the weights."),
    click.option("--rope-scaling", metavar="KIND:FACTOR",
                 help="A longer context: yarn:4, linear:2 or dynamic:4."),
    click.option("--cuda-graphs/--no-cuda-graphs", default=True, show_default=True,
                 help="Native engine on CUDA: replay steps of one token a text, but for models "
                 "with experts or recurrent layers."),
    click.option("--cache-tokens", type=click.IntRange(min=1),
                 help="Size of the native engine's cache; default: fits the memory."),
    click.option("--tp", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
                 help="Native engine: divide the model among N processes, each with a device "
                 "of its own or its part of the CPU's cores."),
)  # fmt: skip
TEMPLATE = (
    click.option("--template", metavar="NAME|FILE",
                 help="Chat template instead of the tokenizer's."),
    click.option("--chat-template-kwargs", type=_Variables(), default="{}",
                 help="""What chat templates are told beside messages: '{"enable_thinking": false}'.
                 """),
)  # fmt: skip
SERVING = (
    click.option(
        "--host",
        default="127.0.0.1",
        show_default=True,
        help="Address to listen on; 0.0.0.0 lets other machines in.",
    ),
    click.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=8000,
        show_default=True,
        help="0 takes a free one.",
    ),
    click.option(
        "--api-key",
        envvar="LLM_INFER_API_KEY",
        show_envvar=True,
        help="Answer only requests that bring this key.",
    ),
    click.option("--name", help="What requests call the model; its folder's name if not given."),
    click.option(
        "--max-open",
        type=click.IntRange(min=1),
        default=256,
        show_default=True,
        help="Answers that run or wait; requests beyond get status 429.",
    ),
    click.option(
        "--thoughts",
        type=click.Choice(get_args(ToldIn)),
        default="reasoning_content",
        show_default=True,
        help="Field of chat answers that tells what stands between <think> and </think>, or such "
        "marks: one of its own, or the text, with the marks.",
    ),
    click.option(
        "--grace",
        "grace_s",
        type=click.IntRange(min=0),
        default=30,
        show_default=True,
        metavar="SECONDS",
        help="What runs may take so long after SIGTERM or Ctrl-C.",
    ),
)
SERVING_NAMES = ("host", "port", "api_key", "max_open", "thoughts", "grace_s")
_LOADING_NAMES = (
    "engine",
    "device",
    "dtype",
    "quantization",
    "kernels",
    "lora",
    "rope_scaling",
    "cuda_graphs",
    "cache_tokens",
    "tp",
)
_SAMPLING_NAMES = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "stop",
)


def with_options(*groups: tuple[Callable[..., Any], ...]) -> Callable[..., Any]:
    """Add groups of options to a command, in their order."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for group in reversed(groups):
            for option in reversed(group):
                command = option(command)
        return command

    return add


def sampling_of(options: Mapping[str, Any]) -> Sampling:
    """The settings; a number out of range is wrong usage."""
    try:
        settings = {name: options[name] for name in _SAMPLING_NAMES}
        return Sampling(**settings, logprobs=options.get("logprobs"), beams=_beams_of(options))
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def loading_of(options: Mapping[str, Any]) -> LoadOptions:
    """How to load a model in this process."""
    if options["engine"].startswith(REMOTE):
        raise click.UsageError("--engine openai:URL is for generate, chat and bench")
    return LoadOptions(**{name: options[name] for name in _LOADING_NAMES})


def server_of(options: Mapping[str, Any]) -> str | None:
    """`openai:URL` where a server is to be asked, which loads the model in its own way."""
    engine = str(options["engine"])
    if not engine.startswith(REMOTE):
        return None
    default = LoadOptions()
    for name in _LOADING_NAMES:
        if name != "engine" and options[name] != getattr(default, name):
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option}: the server at {engine} decides that")
    return engine


def _beams_of(options: Mapping[str, Any]) -> Beams | None:
    num_beams = options.get("num_beams", 1)
    given = {name: options.get(name) for name in ("length_penalty", "early_stopping")}
    given = {name: value for name, value in given.items() if value is not None}
    num_texts = options.get("num_return_sequences", 1)
    if num_texts > num_beams:
        found = f"found {num_texts} with --num-beams {num_beams}"
        raise ValueError(f"--num-return-sequences: {found}, want at most as many")
    if num_beams > 1:
        return Beams(num_beams=num_beams, num_texts=num_texts, **given)
    if given:
        option = f"--{next(iter(given)).replace('_', '-')}"
        raise ValueError(f"{option}: found --num-beams {num_beams}, want at least 2 with it")
    return None
