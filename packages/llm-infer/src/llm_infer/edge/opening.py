"""What a command talks to: the model its options name, opened, and told of once on stderr."""

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from llm_infer.edge.loading import load
from llm_infer.edge.local import LocalSpeaker
from llm_infer.edge.model_folder import Loaded
from llm_infer.edge.notes import note
from llm_infer.edge.options import loading_of, server_of
from llm_infer.edge.remote.model import RemoteModel
from llm_infer.edge.remote.server import server_at
from llm_infer.edge.speaker import Speaker
from llm_infer.edge.startup import starting
from llm_infer.edge.templates import chat_template, read_tools, template_ends
from llm_infer.engine import NO_VARIABLES
from llm_infer.errors import InferError


def open_model(model: Path, options: Mapping[str, Any], *, waits: bool = True) -> Loaded:
    """A model, until the command ends; unless it `waits`, weights may come after: `Loaded.wait`."""
    loaded, line = load(model, loading_of(options), waits=waits)
    click.get_current_context().call_on_close(loaded.close)
    note(f"engine: {line}", is_dim=True)
    return loaded


def open_remote(model: Path, engine: str) -> RemoteModel:
    """A model of the server that `openai:URL` names; `OPENAI_API_KEY` is the key it is shown."""
    server = server_at(engine, key=os.environ.get("OPENAI_API_KEY"))
    found = RemoteModel(server, str(model))
    note(f"engine: {found.description}", is_dim=True)
    return found


def open_speaker(
    model: Path,
    options: Mapping[str, Any],
    *,
    template: str | None = None,
    tools: Path | None = None,
    variables: Mapping[str, object] = NO_VARIABLES,
) -> Speaker:
    """Either; `template` is the name or the file of a chat template, which is told the rest."""
    if (engine := server_of(options)) is not None:
        given = {
            "--template": template,
            "--tools": tools,
            "--chat-template-kwargs": variables,
        }
        for name, value in given.items():
            if value:
                raise click.UsageError(f"{name}: the server at {engine} decides that")
        return open_remote(model, engine)
    # Before the model, which takes longer.
    text = None if template is None else chat_template(template)
    ends = () if template is None else template_ends(template)
    told = None if tools is None else read_tools(tools)
    with starting(model):
        loaded = open_model(model, options)
        return LocalSpeaker(loaded, template=text, ends=ends, tools=told, variables=variables)


def require_extra(extra: str, modules: Sequence[str]) -> None:
    """Raise unless the packages of an extra of llm-infer are there."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise InferError(f"{', '.join(missing)}: not installed; pip install 'llm-infer[{extra}]'")
