"""A compiled chat template whose mask is proven."""

from llm_data.messages import Conversation
from llm_data.records import Reason, RecordRefusedError
from llm_data.templates.probes import Draft, prove
from llm_data.templates.source import Rendered, SpecialTokens, TemplateSource, Thinking
from llm_data.templates.writer import Writer


class Template:
    """Renders conversations; compile it once a process.

    The proof runs here, on probes: a template that cannot be proven for plain conversations is
    refused with UsageError. It runs again on every text.
    """

    def __init__(self, source: TemplateSource, special: SpecialTokens) -> None:
        writer = Writer(source, special)
        self._draft = Draft(writer, source, prove(writer, source, special))

    @property
    def ends(self) -> tuple[str, ...]:
        """The tokens that end an answer."""
        return self._draft.evidence.ends

    @property
    def takes_tools(self) -> bool:
        """Whether calls of tools have a proven mask."""
        return self._draft.evidence.no_calls is None

    @property
    def takes_thoughts(self) -> bool:
        """Whether thoughts have a place of their own and a proven mask."""
        return self._draft.evidence.around is not None

    def render(
        self,
        conversation: Conversation,
        *,
        thinking: Thinking = Thinking.KEEP,
        add_generation_prompt: bool = False,
    ) -> Rendered:
        """The conversation's text, and where an assistant speaks in it.

        RecordRefusedError with NOT_IN_TEMPLATE if the template has no place for a part of it, with
        UNPROVEN_MASK if its spans are not exactly what an assistant says.
        """
        evidence = self._draft.evidence
        if evidence.no_calls is not None and _uses_tools(conversation):
            raise RecordRefusedError(
                Reason.NOT_IN_TEMPLATE,
                f"template {self._draft.source.name} takes no tools: {evidence.no_calls}",
            )
        return self._draft.checked(
            conversation, thinking, add_generation_prompt=add_generation_prompt
        )


def _uses_tools(conversation: Conversation) -> bool:
    return bool(conversation.tools) or any(
        message.tool_calls or message.role == "tool" for message in conversation.messages
    )
