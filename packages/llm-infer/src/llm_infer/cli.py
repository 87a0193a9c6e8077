"""The `llm-infer` command: parses and calls."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from llm_infer import __version__
from llm_infer.errors import InferError
from llm_infer.sampling import Sampling


class _Command(click.Command):
    """A command whose user-made failures print as one `Error:` and exit 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (InferError, OSError) as error:
            raise click.ClickException(str(error)) from error


@click.group(epilog="Exit codes: 0 ok, 1 failed, 2 usage.")
@click.version_option(__version__)
def main() -> None:
    """Generate text and chat with Hugging Face models."""


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """What both commands need to know about the sampling and the model."""
    sampling = Sampling()
    options = (
        click.option("--max-new-tokens", type=int, default=sampling.max_new_tokens,
                     show_default=True),
        click.option("--temperature", type=float, default=sampling.temperature, show_default=True,
                     help="0 takes the likeliest token."),
        click.option("--top-k", type=int, default=sampling.top_k, show_default=True,
                     help="Draw among the k likeliest; 0 is off."),
        click.option("--top-p", type=float, default=sampling.top_p, show_default=True,
                     help="Draw among the likeliest that reach this probability; 1 is off."),
        click.option("--seed", type=int, default=sampling.seed, show_default=True),
        click.option("--stop", multiple=True, metavar="TEXT",
                     help="End before this text; may be given more than once."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return _model_options(command)


def _model_options(command: Callable[..., None]) -> Callable[..., None]:
    """How the model is run."""
    options = (
        click.option("--engine", type=click.Choice(["auto", "transformers"]), default="auto",
                     show_default=True),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "npu"]), default="auto",
                     show_default=True, help="auto: CUDA, else NPU, else CPU."),
        click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
                     default="auto", show_default=True, help="auto: as the model was saved."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@main.command(cls=_Command, epilog="Example: llm-infer generate hf --prompt 'def read('")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--prompt", help="Text to continue; streamed to stdout.")
@click.option("--input", "input_", type=click.Path(path_type=Path), help="JSON lines: 'prompt'.")
@click.option("--output", type=click.Path(path_type=Path), help="Answers to --input, JSON lines.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer to --prompt as JSON.")
@_options
def generate(
    model: Path,
    prompt: str | None,
    input_: Path | None,
    output: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Continue a prompt, or each prompt of a file."""
    if (prompt is None) == (input_ is None):
        raise click.UsageError("give one of --prompt and --input")
    if (input_ is None) != (output is None):
        raise click.UsageError("--input and --output belong together")
    if as_json and prompt is None:
        raise click.UsageError("--json is for --prompt; --output is JSON already")
    sampling = _sampling(options)
    from llm_infer.edge import generate as edge

    prompts = edge.read_prompts(input_) if input_ else []
    loaded = _load(model, options)
    if output is not None:
        edge.to_file(loaded, prompts, output, sampling)
    elif prompt is not None:
        (edge.to_json if as_json else edge.to_terminal)(loaded, prompt, sampling)


@main.command(cls=_Command, epilog="Example: llm-infer chat hf --system 'Be brief.'")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--system", help="System prompt.")
@click.option("--history-turns", type=click.IntRange(min=0), default=16, show_default=True,
              help="Earlier questions and answers the model is shown.")  # fmt: skip
@click.option("--template", metavar="NAME|FILE", help="Chat template instead of the tokenizer's.")
@click.option("--hide-thinking", is_flag=True, help="Leave out what stands in <think>…</think>.")
@_options
def chat(
    model: Path,
    system: str | None,
    history_turns: int,
    template: str | None,
    hide_thinking: bool,
    **options: Any,
) -> None:
    """Talk with a model; /help lists the commands."""
    sampling = _sampling(options)
    from llm_infer.chat import Conversation
    from llm_infer.edge import repl
    from llm_infer.edge.templates import chat_template

    how = repl.ChatOptions(
        template=None if template is None else chat_template(template),
        hides_thoughts=hide_thinking,
        history=Path(click.get_app_dir("llm-infer")) / "chat_history",
    )
    conversation = Conversation(system=system, max_turns=history_turns)
    repl.chat(_load(model, options), conversation, sampling, how)


@main.command(cls=_Command, epilog="Example: llm-infer serve hf-chat --port 8000")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 lets other machines in.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="0 takes a free one.",
)
@click.option(
    "--api-key",
    envvar="LLM_INFER_API_KEY",
    show_envvar=True,
    help="Answer only requests that bring this key.",
)
@click.option("--name", help="What requests call the model; its folder's name if not given.")
@click.option("--template", metavar="NAME|FILE", help="Chat template instead of the tokenizer's.")
@click.option(
    "--max-open",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Answers that run or wait; requests beyond get status 429.",
)
@click.option(
    "--grace",
    "grace_s",
    type=click.IntRange(min=0),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="What runs may take so long after SIGTERM or Ctrl-C.",
)
@_model_options
def serve(model: Path, **options: Any) -> None:
    """Answer OpenAI's HTTP API, and show a page to chat in."""
    _require_extra("serve", ("fastapi", "uvicorn", "prometheus_client"))
    from llm_infer.edge.server import run
    from llm_infer.edge.templates import chat_template

    name = options["template"]
    names = ("host", "port", "api_key", "max_open", "grace_s")
    settings = run.Options(
        model_name=options["name"] or model.resolve().name,
        template=None if name is None else chat_template(name),
        **{one: options[one] for one in names},
    )
    run.serve(_load(model, options), settings)


def _require_extra(extra: str, modules: tuple[str, ...]) -> None:
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise InferError(f"{', '.join(missing)}: not installed; pip install 'llm-infer[{extra}]'")


def _sampling(options: dict[str, Any]) -> Sampling:
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop")
    try:
        return Sampling(**{name: options[name] for name in names})
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _load(model: Path, options: dict[str, Any]) -> Any:
    from llm_infer.edge.model_folder import load

    loaded = load(model, device=options["device"], dtype=options["dtype"])
    click.secho(f"engine: {loaded.engine.description}", dim=True, err=True)
    return loaded
