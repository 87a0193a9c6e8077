"""AGIEval's records as the zero-shot questions the harness' task files read.

The wording is that of the authors' `convert_zero_shot` (AGIEval, src/dataset_loader.py), which
the `hails/agieval-*` data sets hold ready made; no space follows a passage.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

_LETTERS = "ABCDEFG"
_CLOZE = frozenset({"math", "gaokao-mathcloze"})
_CHINESE = frozenset(
    {
        *("gaokao-biology", "gaokao-chemistry", "gaokao-chinese", "gaokao-geography"),
        *("gaokao-history", "gaokao-mathcloze", "gaokao-mathqa", "gaokao-physics"),
        *("jec-qa-ca", "jec-qa-kd", "logiqa-zh"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    question: str
    choices: str
    pick: str
    answer: str
    usual_choices: int


_WORDS: Mapping[bool, _Words] = MappingProxyType(
    {
        False: _Words(
            question="Q: ",
            choices="Answer Choices: ",
            pick="A: Among A through {}, the answer is",
            answer="A: The answer is",
            usual_choices=5,
        ),
        True: _Words(
            question="问题：",
            choices="选项：",
            pick="答案：从A到{}, 我们应选择",
            answer="答案：",
            usual_choices=4,
        ),
    }
)


def row(record: Mapping[str, object], subject: str) -> dict[str, object]:
    """`query`, `choices`, `gold` of a multiple-choice record; `query`, `answer` of a cloze one."""
    words = _WORDS[subject in _CHINESE]
    start = f"{record.get('passage') or ''}{words.question}{record['question']}"
    if subject in _CLOZE:
        return {"query": f"{start}\n{words.answer}", "answer": _cloze_answer(record)}
    options = record.get("options")
    if not isinstance(options, list) or not options:
        raise ValueError(f"options {options!r}, want a list of choices")
    choices = [str(option) for option in cast("list[object]", options)]
    # One option means that all stand in one text: the authors then assume the usual number.
    count = words.usual_choices if len(choices) == 1 else len(choices)
    pick = words.pick.format(_LETTERS[count - 1])
    query = f"{start} {words.choices}{' '.join(choices)}\n{pick}"
    return {"query": query, "choices": choices, "gold": _gold(record.get("label"), count)}


def _gold(label: object, count: int) -> list[int]:
    """Numbers of the right choices; a label is a letter, several letters, or a list of them."""
    letters = cast("list[object]", label) if isinstance(label, list) else list(str(label or ""))
    known = _LETTERS[:count]
    if not letters or any(not isinstance(x, str) or x not in known or not x for x in letters):
        raise ValueError(f"label {label!r}, want letters among {', '.join(known)}")
    return [known.index(str(letter)) for letter in letters]


def _cloze_answer(record: Mapping[str, object]) -> str:
    answer = record.get("answer")
    if answer is None:
        answer = record.get("label")
    if answer is None or answer == "":
        raise ValueError("no answer, want a text under 'answer'")
    return str(answer)
