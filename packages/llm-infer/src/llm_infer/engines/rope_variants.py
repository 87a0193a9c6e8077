"""Which texts may share blocks of the cache: those whose keys turn by the same angles."""

from llm_infer.model.runner import Model

LONG = b"long"
"""The variant of texts that use the rope table for long ones."""


def variant_of(model: Model, num_prompt: int) -> bytes:
    """The variant of a text that begins with so many tokens; b"" for what most texts are.

    Under dynamic scaling a prompt longer than the trained length turns by its own length.
    """
    if is_long(model, num_prompt):
        return LONG
    if model.grows_from is not None and num_prompt > model.grows_from:
        return b"prompt of %d" % num_prompt
    return b""


def is_long(model: Model, num_tokens: int) -> bool:
    """Whether a text of so many tokens uses the rope table for long ones."""
    return model.short_length is not None and num_tokens > model.short_length
