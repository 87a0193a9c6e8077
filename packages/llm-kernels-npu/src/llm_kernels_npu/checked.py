"""A backend behind its limits, as one function with the operator's own parameters.

It is written out and compiled, as dataclasses are: a wrapper of `*args, **kwargs` packs and
unpacks every argument twice, which takes longer than some operators' limits.
"""

import inspect
from collections.abc import Callable
from typing import Any, NoReturn

_SOURCE = """\
def {name}({parameters}):
    reason = _limit({arguments})
    if reason is not None:
        _refuse(reason, ({positional}), {{{named}}})
    return _run({arguments})
"""

Refuse = Callable[[str, tuple[object, ...], dict[str, object]], NoReturn]
"""Takes the reason, and the call's arguments by position and by name."""


def checked(
    run: Callable[..., Any], limit: Callable[..., str | None], refuse: Refuse
) -> Callable[..., Any]:
    """`run` when `limit` gives no reason for the same arguments, else `refuse`, which raises.

    The function has the name, parameters and defaults of `run`.
    """
    signature = inspect.signature(run)
    plain = [
        one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()
    ]
    keyword = inspect.Parameter.KEYWORD_ONLY
    positional = [one.name for one in plain if one.kind is not keyword]
    named = [one.name for one in plain if one.kind is keyword]
    source = _SOURCE.format(
        name=run.__name__,
        # str of a signature is its source, its defaults being numbers, strings and None.
        parameters=str(inspect.Signature(plain))[1:-1],
        arguments=", ".join([*positional, *(f"{name}={name}" for name in named)]),
        positional="".join(f"{name}, " for name in positional),
        named=", ".join(f"{name!r}: {name}" for name in named),
    )
    scope: dict[str, Any] = {"_run": run, "_limit": limit, "_refuse": refuse}
    exec(compile(source, f"<checked {run.__module__}>", "exec"), scope)
    return scope[run.__name__]
