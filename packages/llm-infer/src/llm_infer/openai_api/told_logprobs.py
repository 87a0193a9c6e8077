"""Log-probabilities as servers tell them, read: completions' legacy form and that of chats.

Forms: https://platform.openai.com/docs/api-reference/completions/object, and `logprobs.content` of
.../chat/object, which llama.cpp's server uses for completions, too.
"""

from collections.abc import Iterator
from itertools import zip_longest
from typing import cast

from llm_infer.openai_api.answers import TokenText


def told_logprobs(found: object, *, num_top: int) -> tuple[TokenText, ...]:
    """The tokens of one event, each with the `num_top` likeliest in its place at most.

    ValueError for what is in neither form; nothing for None.
    """
    if found is None:
        return ()
    fields = _object(found)
    if "content" in fields:
        return tuple(_of_chat(one, num_top) for one in _list(fields["content"] or []))
    return tuple(_legacy(fields, num_top))


def _of_chat(found: object, num_top: int) -> TokenText:
    one = _object(found)
    top = [_object(rival) for rival in _list(one.get("top_logprobs") or [])]
    pairs = [(_text(rival.get("token")), _number(rival.get("logprob"))) for rival in top]
    return TokenText(_text(one.get("token")), _number(one.get("logprob")), tuple(pairs[:num_top]))


def _legacy(fields: dict[str, object], num_top: int) -> Iterator[TokenText]:
    tokens, values = _list(fields.get("tokens")), _list(fields.get("token_logprobs"))
    # A server that is asked for none may leave them out.
    tops = _list(fields.get("top_logprobs") or [])
    for token, value, top in zip_longest(tokens, values, tops[: len(tokens)]):
        rivals = [(text, _number(one)) for text, one in _object(top or {}).items()]
        # Objects have no order, and vLLM tells the chosen token beside the likeliest.
        rivals.sort(key=lambda pair: -pair[1])
        yield TokenText(_text(token), _number(value), tuple(rivals[:num_top]))


def _object(found: object) -> dict[str, object]:
    if not isinstance(found, dict):
        raise ValueError(f"found {str(found)[:40]!r}, want an object")
    return cast("dict[str, object]", found)


def _list(found: object) -> list[object]:
    if not isinstance(found, list):
        raise ValueError(f"found {str(found)[:40]!r}, want a list")
    return cast("list[object]", found)


def _text(found: object) -> str:
    if not isinstance(found, str):
        raise ValueError(f"found the token {str(found)[:40]!r}, want a text")
    return found


def _number(found: object) -> float:
    if not isinstance(found, int | float) or isinstance(found, bool):
        raise ValueError(f"found the log-probability {str(found)[:40]!r}, want a number")
    return float(found)
