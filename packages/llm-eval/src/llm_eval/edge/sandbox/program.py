"""Runs one program in an interpreter of its own. Started by `inside.py`, never imported.

The job comes on descriptor 0, marshalled: the program and the word that says "ran to its last
line" on descriptor 3. Until then the word is where the program cannot get at it: on the stack of
an evaluation that waits for the program, which frames do not show; what would (the garbage
collector's lists, tracing, raw memory through ctypes, a second interpreter) is refused by an audit
hook, which nothing in Python can take away. A Python started by exec has never loaded ctypes, so
there are no classes of it to be found either.
"""

import marshal
import posix
import sys

TYPE_CHECKING = False  # `typing` would take longer to import than all else here
if TYPE_CHECKING:
    from collections.abc import Callable, Set
    from types import CodeType
    from typing import Any

_REFUSED_EVENTS = frozenset(
    {
        *("gc.get_objects", "gc.get_referrers", "gc.get_referents"),
        *("sys.settrace", "sys.setprofile", "cpython.PyInterpreterState_New"),
    }
)
# Ways to raw memory, by the last part of the module's name: an extension's entry point has it.
_REFUSED_MODULES = frozenset(
    {
        *(
            "_ctypes",
            "_ctypes_test",
            "ctypes",
            "_testcapi",
            "_testinternalcapi",
            "_testlimitedcapi",
        ),
        *("_xxsubinterpreters", "_interpreters"),
    }
)


def take() -> "tuple[CodeType, list[Callable[[None], None]]]":
    """The program compiled and what tells that it finished; leaves no name behind."""
    parts = []
    while part := posix.read(0, 1 << 16):
        parts.append(part)
    program, word = marshal.loads(b"".join(parts))
    posix.dup2(1, 0)
    code = compile(program, "program.py", "exec", dont_inherit=True)
    ends = [finisher(word, posix.write, posix._exit)]
    sys.addaudithook(refuser(_REFUSED_EVENTS, _REFUSED_MODULES, str, type))
    globals().clear()
    return code, ends


def finisher(
    word: bytes, write: "Callable[[int, bytes], int]", leave: "Callable[[int], None]"
) -> "Callable[[None], None]":
    """What says that the program finished. It holds all it needs: no name is left by then."""

    def finish(_: None) -> None:
        write(3, word)
        leave(0)

    return finish


def refuser(
    events: "Set[str]", modules: "Set[str]", text: type[str], kind: type
) -> "Callable[[str, tuple[Any, ...]], None]":
    """An audit hook. It uses no builtin by name: a program may replace those."""

    def refuse(event: str, args: "tuple[Any, ...]") -> None:
        if event in events:
            raise PermissionError(event)
        if event == "import":
            name = args[0]
            if kind(name) is not text or text.rpartition(name, ".")[2] in modules:
                raise ImportError("not in the sandbox")

    return refuse


def run(
    leave: "Callable[[int], None]", code: "CodeType", ends: "list[Callable[[None], None]]"
) -> None:
    """Run to the last line, then say so. Whatever ends the process earlier says nothing.

    `code_eval` runs programs in empty globals, so `__name__` is that of the builtins.
    """
    try:
        # What finishes waits as a value on the stack, not under a name.
        ends.pop()(exec(code, {}))
    except BaseException:  # noqa: BLE001 - SystemExit too: leaving early is not finishing
        leave(1)


run(posix._exit, *take())
