"""The `llm-infer` command: parses and calls."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from llm_infer import __version__
from llm_infer.edge.options import (
    LOADING,
    SAMPLING,
    SERVING,
    SERVING_NAMES,
    loading_of,
    sampling_of,
    server_of,
    with_options,
)
from llm_infer.errors import InferError


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
    """Generate text and chat, from Hugging Face or Megatron weights as they lie."""


@main.command(cls=_Command, epilog="Example: llm-infer generate hf --prompt 'def read('")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--prompt", help="Text to continue; streamed to stdout.")
@click.option("--input", "input_", type=click.Path(path_type=Path), help="JSON lines: 'prompt'.")
@click.option("--output", type=click.Path(path_type=Path), help="Answers to --input, JSON lines.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer to --prompt as JSON.")
@with_options(SAMPLING, LOADING)
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
    sampling = sampling_of(options)
    from llm_infer.edge import generate as edge

    prompts = edge.read_prompts(input_) if input_ else []
    speaker = _speaker(model, options, template=None)
    if output is not None:
        edge.to_file(speaker, prompts, output, sampling)
    elif prompt is not None:
        (edge.to_json if as_json else edge.to_terminal)(speaker, prompt, sampling)


@main.command(cls=_Command, epilog="Example: llm-infer chat hf --system 'Be brief.'")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--system", help="System prompt.")
@click.option("--history-turns", type=click.IntRange(min=0), default=16, show_default=True,
              help="Earlier questions and answers the model is shown.")  # fmt: skip
@click.option("--template", metavar="NAME|FILE", help="Chat template instead of the tokenizer's.")
@click.option("--hide-thinking", is_flag=True, help="Leave out what stands in <think>…</think>.")
@with_options(SAMPLING, LOADING)
def chat(
    model: Path,
    system: str | None,
    history_turns: int,
    template: str | None,
    hide_thinking: bool,
    **options: Any,
) -> None:
    """Talk with a model; /help lists the commands."""
    sampling = sampling_of(options)
    from llm_infer.chat import Conversation
    from llm_infer.edge import repl

    how = repl.ChatOptions(
        hides_thoughts=hide_thinking,
        history=Path(click.get_app_dir("llm-infer")) / "chat_history",
    )
    conversation = Conversation(system=system, max_turns=history_turns)
    speaker = _speaker(model, options, template=template)
    repl.chat(speaker, conversation, sampling, how)


@main.command(cls=_Command, epilog="Example: llm-infer serve hf-chat --port 8000")
@click.argument("model", type=click.Path(path_type=Path))
@with_options(SERVING, LOADING)
def serve(model: Path, **options: Any) -> None:
    """Answer OpenAI's HTTP API, and show a page to chat in."""
    _require_extra("serve", ("fastapi", "uvicorn", "prometheus_client"))
    from llm_infer.edge.server import run
    from llm_infer.edge.templates import chat_template

    name = options["template"]
    settings = run.Options(
        model_name=options["name"] or model.resolve().name,
        template=None if name is None else chat_template(name),
        **{one: options[one] for one in SERVING_NAMES},
    )
    run.serve(_load(model, options), settings)


def _require_extra(extra: str, modules: tuple[str, ...]) -> None:
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise InferError(f"{', '.join(missing)}: not installed; pip install 'llm-infer[{extra}]'")


@main.command(cls=_Command, epilog="Example: llm-infer bench hf --requests 16")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--new-tokens", type=click.IntRange(min=2), default=64, show_default=True)
@click.option("--requests", type=click.IntRange(min=1), default=8, show_default=True,
              help="How many run together in the second measurement.")  # fmt: skip
@with_options(LOADING)
def bench(model: Path, prompt_tokens: int, new_tokens: int, requests: int, **options: Any) -> None:
    """Measure one request, and several together: first token, tokens a second."""
    if (engine := server_of(options)) is not None:
        from llm_infer.edge.remote import bench as remote

        served = _remote(model, engine)
        remote.report(served, prompt_tokens=prompt_tokens, new_tokens=new_tokens, requests=requests)
        return
    from llm_infer.edge import bench as edge

    loaded = _load(model, options)
    edge.report(loaded, prompt_tokens=prompt_tokens, new_tokens=new_tokens, requests=requests)


def _speaker(model: Path, options: dict[str, Any], *, template: str | None) -> Any:
    if (engine := server_of(options)) is not None:
        if template is not None:
            raise click.UsageError(f"--template: the server at {engine} decides that")
        return _remote(model, engine)
    from llm_infer.edge.local import LocalSpeaker
    from llm_infer.edge.templates import chat_template

    text = None if template is None else chat_template(template)
    return LocalSpeaker(_load(model, options), template=text)


def _remote(model: Path, engine: str) -> Any:
    from llm_infer.edge.remote.model import RemoteModel
    from llm_infer.edge.remote.server import server_at

    found = RemoteModel(server_at(engine), str(model))
    click.secho(f"engine: {found.description}", dim=True, err=True)
    return found


def _load(model: Path, options: dict[str, Any]) -> Any:
    from llm_infer.edge.loading import load

    loaded, line = load(model, loading_of(options))
    click.secho(f"engine: {line}", dim=True, err=True)
    return loaded
