"""The library's chat templates for programs that render conversations themselves."""

from collections.abc import Sequence

from llm_data.templates.library import library_names, library_template


class ChatTemplates:
    """What the entry point `llm_infer.chat_templates` names."""

    def names(self) -> Sequence[str]:
        """Every template there is."""
        return library_names()

    def jinja(self, name: str) -> str:
        """Its text, for transformers' `apply_chat_template`; UsageError for no such name."""
        return library_template(name).text
