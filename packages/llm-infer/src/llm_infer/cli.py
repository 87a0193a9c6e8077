"""The `llm-infer` command: parses and calls."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from llm_infer import __version__
from llm_infer.edge.options import (
    BEAMS,
    LOADING,
    SAMPLING,
    SERVING,
    SERVING_NAMES,
    TEMPLATE,
    TOLD,
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
        except BrokenPipeError:
            # Whoever read the output has seen enough; click ends without a word.
            raise
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
@with_options(SAMPLING, BEAMS, TOLD, LOADING)
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
    if options["logprobs"] is not None and not (as_json or output):
        raise click.UsageError("--logprobs: only with --json or --output")
    sampling = sampling_of(options)
    from llm_infer.edge import generate as edge
    from llm_infer.edge.opening import open_speaker

    prompts = edge.read_prompts(input_, sampling) if input_ else []
    speaker = open_speaker(model, options)
    if output is not None:
        edge.to_file(speaker, prompts, output, sampling)
    elif prompt is not None:
        (edge.to_json if as_json else edge.to_terminal)(speaker, prompt, sampling)


@main.command(cls=_Command, epilog="Example: llm-infer chat hf --system 'Be brief.'")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--system", help="System prompt.")
@click.option("--history-turns", type=click.IntRange(min=0), default=16, show_default=True,
              help="Earlier questions and answers the model is shown.")  # fmt: skip
@click.option(
    "--tools",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="JSON list of tools, as OpenAI's API takes it, that the template is told of.",
)
@click.option("--hide-thinking", is_flag=True, help="Leave out what stands in <think>…</think>.")
@with_options(TEMPLATE, SAMPLING, BEAMS, LOADING)
def chat(
    model: Path,
    system: str | None,
    history_turns: int,
    tools: Path | None,
    hide_thinking: bool,
    template: str | None,
    chat_template_kwargs: Mapping[str, object],
    **options: Any,
) -> None:
    """Talk with a model; /help lists the commands."""
    sampling = sampling_of(options)
    from llm_infer.chat import Conversation
    from llm_infer.edge import repl
    from llm_infer.edge.opening import open_speaker

    how = repl.ChatOptions(
        hides_thoughts=hide_thinking,
        history=Path(click.get_app_dir("llm-infer")) / "chat_history",
    )
    conversation = Conversation(system=system, max_turns=history_turns)
    speaker = open_speaker(
        model, options, template=template, tools=tools, variables=chat_template_kwargs
    )
    repl.chat(speaker, conversation, sampling, how)


@main.command(cls=_Command, epilog="Example: llm-infer serve hf-chat --port 8000")
@click.argument("model", type=click.Path(path_type=Path))
@with_options(SERVING, TEMPLATE, LOADING)
def serve(model: Path, **options: Any) -> None:
    """Answer OpenAI's HTTP API, and show a page to chat in."""
    from llm_infer.edge.opening import open_model, require_extra
    from llm_infer.edge.startup import starting
    from llm_infer.edge.templates import chat_template, template_ends

    require_extra("serve", ("fastapi", "uvicorn", "prometheus_client"))
    name = options["template"]
    with starting(model):
        from llm_infer.edge.server import run

        settings = run.Options(
            model_name=options["name"] or model.resolve().name,
            template=None if name is None else chat_template(name),
            template_ends=() if name is None else template_ends(name),
            template_variables=options["chat_template_kwargs"],
            **{one: options[one] for one in SERVING_NAMES},
        )
        loaded = open_model(model, options, waits=False)
    run.serve(loaded, settings)


@main.command(cls=_Command, epilog="Example: llm-infer bench hf --requests 16")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--new-tokens", type=click.IntRange(min=2), default=64, show_default=True)
@click.option("--requests", type=click.IntRange(min=1), default=8, show_default=True,
              help="How many run together in the second measurement.")  # fmt: skip
@with_options(LOADING)
def bench(model: Path, prompt_tokens: int, new_tokens: int, requests: int, **options: Any) -> None:
    """Measure one request, and several together: first token, tokens a second."""
    from llm_infer.edge import bench as edge
    from llm_infer.edge.opening import open_model, open_remote
    from llm_infer.edge.remote import bench as remote
    from llm_infer.edge.startup import starting

    counts = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "requests": requests}
    if (engine := server_of(options)) is not None:
        remote.report(open_remote(model, engine), **counts)
    else:
        with starting(model):
            loaded = open_model(model, options)
        edge.report(loaded, **counts)
