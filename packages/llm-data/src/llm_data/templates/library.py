"""The templates that come with the package, as data files."""

from dataclasses import replace
from functools import cache
from importlib.resources import files

from llm_data.errors import UsageError, did_you_mean, listed
from llm_data.templates.source import TemplateSource, parse_facts


@cache
def library_names() -> tuple[str, ...]:
    """Every name, sorted."""
    folder = files("llm_data.templates") / "library"
    return tuple(
        sorted(
            entry.name.removesuffix(".jinja")
            for entry in folder.iterdir()
            if entry.name.endswith(".jinja")
        )
    )


def library_template(name: str) -> TemplateSource:
    """A template by name; UsageError with the choices."""
    names = library_names()
    if name not in names:
        raise UsageError(
            f"no template is called {name!r}{did_you_mean(name, names)}; want one of "
            f"{listed(names, most=len(names))}"
        )
    text = (files("llm_data.templates") / "library" / f"{name}.jinja").read_text("utf-8")
    return with_tool_format(parse_facts(name, text))


def with_tool_format(source: TemplateSource) -> TemplateSource:
    """A template with the macros of its tool format written in front."""
    return (
        replace(source, text=_tool_format(source.tools) + source.text) if source.tools else source
    )


def tool_formats() -> tuple[str, ...]:
    """The names of the tool formats, sorted."""
    folder = files("llm_data.templates") / "library" / "tools"
    return tuple(sorted(entry.name.removesuffix(".jinja") for entry in folder.iterdir()))


@cache
def _tool_format(name: str) -> str:
    return (files("llm_data.templates") / "library" / "tools" / f"{name}.jinja").read_text("utf-8")
