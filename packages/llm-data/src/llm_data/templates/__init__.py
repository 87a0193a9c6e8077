"""Chat templates: data files, the engine that renders them and the proof of their masks."""

from llm_data.templates.library import library_names, library_template
from llm_data.templates.source import Rendered, Span, SpecialTokens, TemplateSource, Thinking
from llm_data.templates.template import Template

__all__ = [
    "Rendered",
    "Span",
    "SpecialTokens",
    "Template",
    "TemplateSource",
    "Thinking",
    "library_names",
    "library_template",
]
