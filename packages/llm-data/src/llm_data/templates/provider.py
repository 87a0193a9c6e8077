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

    def ends(self, name: str) -> Sequence[str]:
        """The tokens that end an answer, `eos_token` for the tokenizer's own.

        Not those that stand within an answer, too, after its thought.
        """
        source = library_template(name)
        marks = source.marks or ()
        return [end for end in source.ends if not any(end in mark for mark in marks)]
