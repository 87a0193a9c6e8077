"""Whether a string is text: bytes that are not UTF-8 reach Python as lone surrogates."""

from llm_infer.errors import InferError


def require_text(text: str, *, where: str) -> str:
    """`text` itself; raises InferError where half a surrogate pair stands in it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"U+{ord(text[error.start]):04X}"
        raise InferError(
            f"{where}: character {error.start + 1} is {found}, half of a pair or a byte that is "
            "not UTF-8; want Unicode text"
        ) from None
    return text
