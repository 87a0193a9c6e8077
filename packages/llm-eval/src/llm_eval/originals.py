"""The original distributions of the named benchmarks, and how their records become rows.

A row has the columns that lm-evaluation-harness' own task files read; a `Layout` says which
members of a distribution hold records and which data set of the Hugging Face hub they stand for.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import cast

from llm_eval import agieval, mbpp, needlebench, records
from llm_eval.errors import EvalError
from llm_eval.records import Record

Row = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A file of a distribution: its place, and the names its path gives (`split`, `subject`)."""

    where: str
    split: str
    subject: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How one benchmark is distributed.

    `path` is a regular expression over member paths with a group `split` or `subject` where they
    are part of it; where it names no subject, `default_subject` is meant. `split_of` says the split
    where each row decides its own. `dataset` and `config` are formats over `subject`: what the
    harness loads.
    `task_files` is the folder of the harness whose files name every data set that must be there.
    """

    distribution: str
    path: re.Pattern[str]
    parse: Callable[[bytes, str], Iterator[Record]]
    keys: tuple[str, ...]
    row: Callable[[Record, Member], Row]
    dataset: str
    config: str | None
    splits: Mapping[str, str]
    required: tuple[str, ...]
    also_known_as: tuple[str, ...] = ()
    task_files: str | None = None
    default_subject: str = ""
    split_of: Callable[[Row], str] | None = None
    names_in_task_files: str = field(default=r'"?dataset_name"?: *"?([\w-]+)"?')

    def member(self, path: str) -> Member | None:
        """What the member at `path` is, or None when it is not one of ours."""
        match = self.path.search(path)
        if match is None:
            return None
        found = match.groupdict()
        split, subject = found.get("split") or "", found.get("subject") or self.default_subject
        return Member(where=path, split=self.splits[split], subject=subject)

    def rows(self, content: bytes, member: Member) -> list[Row]:
        """The rows of one member; raises where a record is not what the layout says."""
        found: list[Row] = []
        for number, record in enumerate(self.parse(content, member.where), start=1):
            where = f"{member.where}: record {number}"
            records.require_keys(record, self.keys, where)
            try:
                found.append(self.row(record, member))
            except (ValueError, TypeError, IndexError) as error:
                raise EvalError(f"{where}: {error}") from None
        if not found:
            raise EvalError(f"{member.where}: holds no record")
        return found

    def key(self, subject: str) -> tuple[str, str | None]:
        """The data set and its configuration, as the harness' task files name them."""
        config = None if self.config is None else self.config.format(subject=subject)
        return self.dataset.format(subject=subject), config


def _letter(value: object, choices: str = "ABCD") -> int:
    if not isinstance(value, str) or len(value) != 1 or value not in choices:
        raise ValueError(f"answer {value!r}, want one of {', '.join(choices)}")
    return choices.index(value)


def _mmlu(record: Record, member: Member) -> Row:
    return {
        "question": record["question"],
        "subject": member.subject,
        "choices": [record[letter] for letter in "ABCD"],
        "answer": _letter(record["answer"]),
    }


def _ceval(record: Record, member: Member) -> Row:
    if member.split != "test":  # the answers of the test split were never published
        _letter(record.get("answer"))
    texts = ("question", "A", "B", "C", "D", "answer", "explanation")
    return {"id": int(str(record["id"]))} | {key: record.get(key) or "" for key in texts}


def _cmmlu(record: Record, _: Member) -> Row:
    _letter(record["Answer"])
    return {key: record[key] for key in ("Question", "A", "B", "C", "D", "Answer")}


def _boolq(record: Record, _: Member) -> Row:
    """SuperGLUE, which the harness reads, puts the title before the passage."""
    if not isinstance(record["answer"], bool):
        raise ValueError(f"answer {record['answer']!r}, want true or false")
    return {
        "question": record["question"],
        "passage": f"{record['title']} -- {record['passage']}",
        "label": int(record["answer"]),
    }


def _hellaswag(record: Record, _: Member) -> Row:
    endings = record["endings"]
    count = len(cast("list[object]", endings)) if isinstance(endings, list) else 0
    if not 0 <= int(str(record["label"])) < count:
        raise ValueError(f"label {record['label']!r} is not the number of one of the endings")
    kept = ("activity_label", "ctx_a", "ctx_b", "ctx", "endings", "split_type", "source_id", "ind")
    return {key: record.get(key) for key in kept} | {"label": str(record["label"])}


def _as_is(*keys: str) -> Callable[[Record, Member], Row]:
    def row(record: Record, _: Member) -> Row:
        return {key: record[key] for key in keys}

    return row


_DEV_VAL_TEST = MappingProxyType({"dev": "dev", "val": "validation", "test": "test"})
_TRAIN_VAL = MappingProxyType({"train": "train", "dev": "validation", "val": "validation"})
_MMLU = ("question", "A", "B", "C", "D", "answer")
_NEEDLES = ("needle", "retrieval_question", "arg2", "language")
_HELLASWAG = ("activity_label", "ctx_a", "ctx_b", "endings", "label")
_HUMANEVAL = ("task_id", "prompt", "entry_point", "canonical_solution", "test")

LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "mmlu": Layout(
            distribution="data.tar (people.eecs.berkeley.edu/~hendrycks)",
            path=re.compile(r"(?P<split>dev|val|test)/(?P<subject>\w+)_(?P=split)\.csv$"),
            parse=records.csv_without_header(*_MMLU),
            keys=_MMLU,
            row=_mmlu,
            dataset="cais/mmlu",
            config="{subject}",
            also_known_as=("hails/mmlu_no_train",),
            splits=_DEV_VAL_TEST,
            required=("dev", "test"),
            task_files="mmlu/default",
        ),
        "ceval": Layout(
            distribution="ceval-exam.zip (ceval/ceval-exam on the hub)",
            path=re.compile(r"(?P<split>dev|val|test)/(?P<subject>\w+)_(?P=split)\.csv$"),
            parse=records.csv_with_header,
            keys=("id", "question", "A", "B", "C", "D"),
            row=_ceval,
            dataset="ceval/ceval-exam",
            config="{subject}",
            splits=MappingProxyType({"dev": "dev", "val": "val", "test": "test"}),
            required=("dev", "val"),
            task_files="ceval",
        ),
        "cmmlu": Layout(
            distribution="cmmlu_v1_0_1.zip (haonan-li/cmmlu on the hub)",
            path=re.compile(r"(?P<split>dev|test)/(?P<subject>\w+)\.csv$"),
            parse=records.csv_with_header,
            keys=("Question", "A", "B", "C", "D", "Answer"),
            row=_cmmlu,
            dataset="haonan-li/cmmlu",
            config="{subject}",
            splits=_DEV_VAL_TEST,
            required=("dev", "test"),
            task_files="cmmlu",
        ),
        "boolq": Layout(
            distribution="dev.jsonl, train.jsonl (google-research-datasets/boolean-questions)",
            path=re.compile(r"(?P<split>train|dev|val)\w*\.jsonl$"),
            parse=records.json_lines,
            keys=("question", "title", "passage", "answer"),
            row=_boolq,
            dataset="aps/super_glue",
            config="boolq",
            also_known_as=("super_glue",),
            splits=_TRAIN_VAL,
            required=("validation",),
        ),
        "bbh": Layout(
            distribution="the folder bbh of suzgunmirac/BIG-Bench-Hard",
            path=re.compile(r"(?:^|/)(?P<subject>[a-z_]+)\.json$"),
            parse=records.json_list("examples"),
            keys=("input", "target"),
            row=_as_is("input", "target"),
            dataset="SaylorTwift/bbh",
            config="{subject}",
            also_known_as=("lukaemon/bbh",),
            splits=MappingProxyType({"": "test"}),
            required=("test",),
            task_files="bbh/fewshot",
        ),
        "agieval": Layout(
            distribution="the folder data/v1 of ruixiangcui/AGIEval",
            path=re.compile(r"(?:^|/)(?P<subject>[\w-]+)\.jsonl$"),
            parse=records.json_lines,
            keys=("question",),
            row=lambda record, member: agieval.row(record, member.subject),
            dataset="hails/agieval-{subject}",
            config=None,
            splits=MappingProxyType({"": "test"}),
            required=("test",),
            task_files="agieval",
            names_in_task_files=r"dataset_path: hails/agieval-([\w-]+)",
        ),
        "humaneval": Layout(
            distribution="HumanEval.jsonl.gz (openai/human-eval)",
            path=re.compile(r"\.jsonl$"),
            parse=records.json_lines,
            keys=_HUMANEVAL,
            row=_as_is(*_HUMANEVAL),
            dataset="openai/openai_humaneval",
            config=None,
            splits=MappingProxyType({"": "test"}),
            required=("test",),
        ),
        "mbpp": Layout(
            distribution="mbpp.jsonl, sanitized-mbpp.json (google-research, folder mbpp)",
            path=re.compile(r"(?:^|/)(?:(?P<subject>sanitized)-)?mbpp\.jsonl?$"),
            parse=records.json_lines_or_array,
            keys=mbpp.KEYS,
            row=lambda record, member: mbpp.row(record, member.subject),
            dataset=mbpp.DATASET,
            config="{subject}",
            also_known_as=("mbpp",),
            splits=MappingProxyType({"": "test"}),
            required=("test",),
            default_subject=mbpp.FULL,
            split_of=mbpp.split,
        ),
        "gsm8k": Layout(
            distribution="train.jsonl, test.jsonl (openai/grade-school-math)",
            path=re.compile(r"(?P<split>train|test)\.jsonl$"),
            parse=records.json_lines,
            keys=("question", "answer"),
            row=_as_is("question", "answer"),
            dataset="openai/gsm8k",
            config="main",
            also_known_as=("gsm8k",),
            splits=MappingProxyType({"train": "train", "test": "test"}),
            required=("test",),
        ),
        "hellaswag": Layout(
            distribution="hellaswag_train.jsonl, hellaswag_val.jsonl (rowanz/hellaswag)",
            path=re.compile(r"(?P<split>train|val)\w*\.jsonl$"),
            parse=records.json_lines,
            keys=_HELLASWAG,
            row=_hellaswag,
            dataset="Rowan/hellaswag",
            config=None,
            splits=_TRAIN_VAL,
            required=("validation",),
        ),
        "needlebench": Layout(
            distribution="needles, PaulGrahamEssays, zh_finance: .jsonl (opencompass/needlebench)",
            path=re.compile(r"(?P<split>needles|PaulGrahamEssays|zh_finance)\.jsonl$"),
            parse=records.json_lines,
            keys=(),
            row=lambda record, member: records.only(
                record, _NEEDLES if member.split == "needles" else ("text",)
            ),
            dataset=needlebench.DATASET,
            config=None,
            splits=MappingProxyType(
                {"needles": "needles", "PaulGrahamEssays": "english", "zh_finance": "chinese"}
            ),
            required=("needles",),
        ),
    }
)
