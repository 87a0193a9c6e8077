"""NeedleBench's single-needle retrieval: a sentence hidden in essays, asked for at their end.

Prompts, order of the essays, needles and score are those of OpenCompass
(`datasets/needlebench/origin.py`, technical report arXiv:2407.11963), sizes those of its
`needlebench_single_*.py`. Lengths are counted in the model's own tokens, not in GPT-4's.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from llm_eval.errors import EvalError

DATASET = "opencompass/NeedleBench"
NUM_REPEATS = 10
# Of a score from 0 to 100, what an answer without the keyword can reach at most.
_WITHOUT_KEYWORD = 0.2

Language = Literal["English", "Chinese"]
Row = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Lengths in tokens, depths in percent, and the tokens of a length left to the question."""

    lengths: tuple[int, ...]
    depths: tuple[int, ...]
    spare_tokens: Mapping[Language, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A task: its language, and whether the question first asks to look for what matters."""

    language: Language
    is_guided: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wording:
    split: str
    prompt: str
    guide: str
    before: str


_ELEVENTHS = (0, 10, 21, 31, 42, 52, 63, 73, 84, 94, 100)
_TWENTIETHS = (*(int(100 / 19 * step) for step in range(19)), 100)


def _spare(english: int) -> Mapping[Language, int]:
    return MappingProxyType({"English": english, "Chinese": 200})


SIZES: Mapping[str, Size] = MappingProxyType(
    {
        "4k": Size(
            lengths=(1000, 2000, 3000, 4000),
            depths=tuple(range(0, 101, 10)),
            spare_tokens=_spare(500),
        ),
        "8k": Size(lengths=(5000, 6000, 7000, 8000), depths=_TWENTIETHS, spare_tokens=_spare(800)),
        "32k": Size(
            lengths=(9000, 13000, 17000, 21000, 25000, 29000, 31000, 32000),
            depths=_ELEVENTHS,
            spare_tokens=_spare(3000),
        ),
        "128k": Size(
            lengths=tuple(range(16000, 128001, 16000)),
            depths=_ELEVENTHS,
            spare_tokens=_spare(600),
        ),
    }
)
TASKS: Mapping[str, Spec] = MappingProxyType(
    {
        "needlebench_en": Spec(language="English", is_guided=True),
        "needlebench_zh": Spec(language="Chinese", is_guided=True),
        "needlebench_unguided_en": Spec(language="English", is_guided=False),
        "needlebench_unguided_zh": Spec(language="Chinese", is_guided=False),
    }
)
_WORDINGS: Mapping[Language, _Wording] = MappingProxyType(
    {
        "English": _Wording(
            split="english",
            prompt="You are an intelligent AI assistant skilled in answering user questions.\n"
            "Please keep your answers concise and clear. Do not talk about irrelevant topics or "
            "repeat your answers.\nThe document given to you by the user is {context}\n\n"
            "Now, the question is: {question}",
            guide="Before answering, please consider what in the document is most relevant to "
            "this question. ",
            before="Please answer in the format",
        ),
        "Chinese": _Wording(
            split="chinese",
            prompt="你是一个善于回答用户问题的智能AI助手\n"
            "请保持你的回答简洁清楚。不要说和下面文档中的无关的话，或重复你的回答\n"
            "用户现在给你的文档是{context}\n\n现在请问：{question}",
            guide="在回答之前，请思考文档中与此问题最相关的内容是什么。",
            before="请按照",
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Needle:
    """A hidden sentence, the question for it, and the word that a right answer holds."""

    text: str
    question: str
    keyword: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The model's tokenizer; `encode` adds no special tokens."""

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]


class Haystack:
    """Prompts of one task, built when they are asked for: all of a size may be a gigabyte.

    `rows` are the imported splits. Raises EvalError where needles or texts of the language are
    missing, or a question lacks the place for its guide.
    """

    def __init__(self, rows: Mapping[str, Sequence[Row]], *, spec: Spec, tokens: Tokens) -> None:
        self._tokens = tokens
        self._language: Language = spec.language
        self._wording = _WORDINGS[spec.language]
        self._texts = [str(row["text"]) for row in rows.get(self._wording.split, ())]
        found = [row for row in rows.get("needles", ()) if row["language"] == spec.language]
        if not self._texts or not found:
            absent = "texts" if not self._texts else "needles"
            raise EvalError(
                f"needlebench: the local data has no {absent} in {spec.language}; import "
                "needles.jsonl, PaulGrahamEssays.jsonl and zh_finance.jsonl"
            )
        self._needles = [self._needle(row, is_guided=spec.is_guided) for row in found]
        self._orders = _orders(len(self._texts))
        self._encoded: dict[int, list[int]] = {}

    def needle(self, repeat: int) -> Needle:
        """The needle of this repeat, at every length and depth."""
        return random.Random(repeat).choice(self._needles)

    def prompt(self, *, length: int, depth: int, repeat: int, spare_tokens: int) -> str:
        """Texts of `length - spare_tokens` tokens, the needle among them, `depth` percent in."""
        needle = self.needle(repeat)
        hidden = self._tokens.encode(f"\n{needle.text}\n")
        texts = self._first(max(length - spare_tokens - len(hidden), 0), self._orders[repeat])
        place = int(len(texts) * (depth / 100))
        context = self._tokens.decode(texts[:place] + hidden + texts[place:])
        return self._wording.prompt.format(context=context, question=needle.question)

    def _needle(self, row: Row, *, is_guided: bool) -> Needle:
        question = str(row["retrieval_question"])
        before, mark, after = question.partition(self._wording.before)
        if is_guided and not mark:
            raise EvalError(
                f"needlebench: question {question[:60]!r} has no {self._wording.before!r}, before "
                "which the guide goes; choose --prompt-type alternative"
            )
        guide = self._wording.guide if is_guided else ""
        return Needle(
            text=str(row["needle"]),
            question=before + guide + mark + after,
            keyword=str(row["arg2"]),
        )

    def _first(self, count: int, order: Sequence[int]) -> list[int]:
        """The first `count` tokens of the texts in this order."""
        found: list[int] = []
        for number in order:
            if len(found) >= count:
                break
            if number not in self._encoded:
                self._encoded[number] = self._tokens.encode(self._texts[number])
            found += self._encoded[number]
        if len(found) < count:
            raise EvalError(
                f"needlebench: the texts in {self._language} have {len(found)} tokens, want "
                f"{count}; choose a smaller --size, or import the whole distribution"
            )
        return found[:count]


def score(prediction: str, needle: Needle) -> float:
    """From 0 to 100: 100 with the keyword, else a fifth of the likeness to the needle.

    Likeness is 1 - edit distance / the longer length, without white space.
    """
    if needle.keyword in prediction:
        return 100.0
    answer, wanted = (re.sub(r"\s+", "", text) for text in (prediction, needle.text))
    longest = max(len(answer), len(wanted))
    likeness = 1 - edit_distance(answer, wanted) / longest if longest else 1.0
    return 100 * _WITHOUT_KEYWORD * likeness


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's: insertions, deletions and substitutions that make `a` into `b`."""
    above = list(range(len(b) + 1))
    for row, left in enumerate(a, start=1):
        diagonal, above[0] = above[0], row
        for column, right in enumerate(b, start=1):
            cost = min(above[column] + 1, above[column - 1] + 1, diagonal + (left != right))
            diagonal, above[column] = above[column], cost
    return above[-1]


def _orders(count: int) -> list[list[int]]:
    """The order of the texts in each repeat: the last one's, shuffled again by its seed."""
    order, found = list(range(count)), list[list[int]]()
    for repeat in range(NUM_REPEATS):
        random.Random(repeat).shuffle(order)
        found.append(list(order))
    return found
