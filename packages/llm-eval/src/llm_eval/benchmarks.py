"""The named benchmarks: which tasks of the harness each command runs, and in which prompt modes.

A variant never changes once it has been published: another wording is another version. Answers
are parsed from the model's text alone; nothing that parses them sees the right answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal

from llm_eval.errors import EvalError
from llm_eval.needlebench import SIZES

Overrides = Mapping[str, object]
Language = Literal["en", "zh"]


def _none() -> Overrides:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to ask: harness tasks, examples, chat template, and keys of the tasks to replace."""

    tasks: tuple[str, ...]
    what: str
    version: int = 1
    num_fewshot: int | None = None
    is_chat: bool = False
    overrides: Overrides = field(default_factory=_none)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """What another prompt language changes: the tasks themselves, or keys of them.

    `prompt_types` are those it exists for.
    """

    prompt_types: frozenset[str]
    tasks: tuple[str, ...] = ()
    overrides: Overrides = field(default_factory=_none)


def _no_languages() -> Mapping[Language, Wording]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A command: its variants by `--prompt-type`, its wordings by `--language`.

    `sizes` are the choices of `--size`, for tasks that are ours and built for one.
    """

    title: str
    variants: Mapping[str, Variant]
    languages: Mapping[Language, Wording] = field(default_factory=_no_languages)
    runs_code: bool = False
    sizes: tuple[str, ...] = ()


def choose(name: str, prompt_type: str, language: Language | None) -> tuple[str, Variant]:
    """The full name (`mmlu/default@1`, `agieval/default/zh@1`) and what it runs."""
    benchmark = BENCHMARKS[name]
    if prompt_type not in benchmark.variants:
        near = get_close_matches(prompt_type, benchmark.variants, n=1)
        raise EvalError(
            f"{name}: no prompt type {prompt_type!r}"
            + (f"; did you mean {near[0]}?" if near else "")
            + f" (choices: {', '.join(benchmark.variants)})"
        )
    variant = benchmark.variants[prompt_type]
    if language is None:
        return f"{name}/{prompt_type}@{variant.version}", variant
    wording = benchmark.languages.get(language)
    if wording is None:
        known = ", ".join(benchmark.languages) or "its own alone"
        raise EvalError(f"{name}: no prompts in {language!r} (choices: {known})")
    if prompt_type not in wording.prompt_types:
        known = ", ".join(sorted(wording.prompt_types))
        raise EvalError(f"{name}: --language goes with --prompt-type {known}, not {prompt_type}")
    worded = Variant(
        tasks=wording.tasks or variant.tasks,
        what=variant.what,
        version=variant.version,
        num_fewshot=variant.num_fewshot,
        is_chat=variant.is_chat,
        overrides=MappingProxyType({**variant.overrides, **wording.overrides}),
    )
    return f"{name}/{prompt_type}/{language}@{variant.version}", worded


def _first_letter(target: str) -> Overrides:
    """A multiple-choice task as generation: the first of A to D that the model writes."""
    return MappingProxyType(
        {
            "output_type": "generate_until",
            "doc_to_choice": None,
            "doc_to_target": target,
            "generation_kwargs": {
                "until": ["\n\n"],
                "max_gen_toks": 32,
                "do_sample": False,
                "temperature": 0.0,
            },
            "metric_list": [
                {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
            ],
            "aggregate_metric_list": _averaged("first-letter"),
            "filter_list": [
                {
                    "name": "first-letter",
                    "filter": [
                        {"function": "regex", "regex_pattern": "([A-D])"},
                        {"function": "take_first"},
                    ],
                }
            ],
        }
    )


def _averaged(filter_name: str) -> list[dict[str, object]]:
    """How a group's score follows from its members': weighted by their size."""
    return [
        {
            "metric": "exact_match",
            "aggregation": "mean",
            "weight_by_size": True,
            "filter_list": [filter_name],
        }
    ]


def _exam(task: str, question: str, target: str, *, shots: int) -> Mapping[str, Variant]:
    """The variants of a four-choice exam that is asked with examples."""
    return MappingProxyType(
        {
            "default": Variant(
                tasks=(task,), num_fewshot=shots, what=f"{shots} examples; the likeliest letter"
            ),
            "alternative": Variant(
                tasks=(task,),
                num_fewshot=shots,
                overrides=_first_letter(target),
                what=f"{shots} examples; the first letter of the generated text",
            ),
            "chat": Variant(
                tasks=(task,),
                num_fewshot=shots,
                is_chat=True,
                what=f"the model's chat template, {shots} examples as turns; the likeliest letter",
            ),
            "cot": Variant(
                tasks=(task,),
                num_fewshot=0,
                overrides=_reasoned(question, target),
                what="no examples; reasons step by step, then 'The answer is X'",
            ),
        }
    )


def _reasoned(question: str, target: str) -> Overrides:
    return MappingProxyType(
        {
            **_first_letter(target),
            "description": "",
            "doc_to_text": question
            + "\nThink step by step, then end with 'The answer is X', X being a letter.\n",
            "generation_kwargs": {"until": [], "max_gen_toks": 512, "do_sample": False},
            "aggregate_metric_list": _averaged("the-answer-is"),
            "filter_list": [
                {
                    "name": "the-answer-is",
                    "filter": [
                        {
                            "function": "regex",
                            "regex_pattern": r"(?i:the answer is|答案是)[^A-D]{0,4}([A-D])",
                            "group_select": -1,
                        },
                        {"function": "take_first"},
                    ],
                }
            ],
        }
    )


_LETTERED = "\nA. {{A}}\nB. {{B}}\nC. {{C}}\nD. {{D}}"
_MMLU = (
    "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}"
    "\nC. {{choices[2]}}\nD. {{choices[3]}}"
)
_CEVAL = "{{question.strip()}}" + _LETTERED
_CMMLU = "{{Question.strip()}}" + _LETTERED
_LETTERS_ASKED = frozenset({"default", "alternative", "chat"})
_AGIEVAL = _GUIDED = frozenset({"default", "chat"})
_NEEDLES = ("needlebench_en", "needlebench_zh")
_OWN = Wording(prompt_types=_LETTERS_ASKED)
_ZH = "以下是单项选择题，请选出其中的正确答案。\n\n"
_EN = "The following are multiple choice questions (with answers).\n\n"


def _worded(question: str, answer: str, description: str) -> Wording:
    changed = {"doc_to_text": f"{question}\n{answer}", "description": description}
    return Wording(prompt_types=_LETTERS_ASKED, overrides=MappingProxyType(changed))


BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {
        "mmlu": Benchmark(
            title="MMLU, 57 subjects",
            variants=_exam("mmlu", _MMLU, "{{'ABCD'[answer]}}", shots=5),
            languages=MappingProxyType({"en": _OWN, "zh": _worded(_MMLU, "答案：", _ZH)}),
        ),
        "ceval": Benchmark(
            title="C-Eval, 52 subjects, validation split",
            variants=_exam("ceval-valid", _CEVAL, "{{answer}}", shots=5),
            languages=MappingProxyType({"zh": _OWN, "en": _worded(_CEVAL, "Answer:", _EN)}),
        ),
        "cmmlu": Benchmark(
            title="CMMLU, 67 subjects",
            variants=_exam("cmmlu", _CMMLU, "{{Answer}}", shots=5),
            languages=MappingProxyType({"zh": _OWN, "en": _worded(_CMMLU, "Answer:", _EN)}),
        ),
        "boolq": Benchmark(
            title="BoolQ, validation split",
            variants=MappingProxyType(
                {
                    "default": Variant(tasks=("boolq",), what="the likelier of yes and no"),
                    "alternative": Variant(
                        tasks=("boolq",),
                        overrides=MappingProxyType(
                            {
                                "doc_to_text": "{{passage}}\nQuestion: {{question}}?\n"
                                "A. Yes\nB. No\nAnswer:",
                                "doc_to_choice": ["B", "A"],
                            }
                        ),
                        what="lettered: the likelier of A (yes) and B (no)",
                    ),
                    "chat": Variant(
                        tasks=("boolq",), is_chat=True, what="default in the chat template"
                    ),
                }
            ),
        ),
        "bbh": Benchmark(
            title="BIG-Bench Hard, 27 tasks",
            variants=MappingProxyType(
                {
                    "default": Variant(tasks=("bbh_fewshot",), what="3 examples, answers alone"),
                    "alternative": Variant(tasks=("bbh_zeroshot",), what="no examples"),
                    "chat": Variant(
                        tasks=("bbh_cot_zeroshot",),
                        is_chat=True,
                        what="the chat template, no examples, step by step",
                    ),
                    "cot": Variant(
                        tasks=("bbh_cot_fewshot",), what="3 examples with their reasoning"
                    ),
                }
            ),
        ),
        "agieval": Benchmark(
            title="AGIEval, 21 exams in two languages",
            variants=MappingProxyType(
                {
                    "default": Variant(tasks=("agieval",), what="no examples"),
                    "alternative": Variant(
                        tasks=("agieval_nous",), what="the eight exams of the Nous suite"
                    ),
                    "chat": Variant(
                        tasks=("agieval",), is_chat=True, what="default in the chat template"
                    ),
                }
            ),
            languages=MappingProxyType(
                {
                    "en": Wording(prompt_types=_AGIEVAL, tasks=("agieval_en",)),
                    "zh": Wording(prompt_types=_AGIEVAL, tasks=("agieval_cn",)),
                }
            ),
        ),
        "humaneval": Benchmark(
            title="HumanEval, pass@1, programs run in a sandbox",
            variants=MappingProxyType(
                {
                    "default": Variant(
                        tasks=("humaneval",), what="the function is continued, greedily"
                    ),
                    "chat": Variant(
                        tasks=("humaneval_instruct",), is_chat=True, what="asked for in a chat"
                    ),
                }
            ),
            runs_code=True,
        ),
        "gsm8k": Benchmark(
            title="GSM8K",
            variants=MappingProxyType(
                {
                    "default": Variant(tasks=("gsm8k",), what="5 examples of the training split"),
                    "alternative": Variant(
                        tasks=("gsm8k_cot_zeroshot",), what="no examples, step by step"
                    ),
                    "chat": Variant(
                        tasks=("gsm8k_cot_llama",),
                        is_chat=True,
                        what="the chat template, 8 reasoned examples as turns",
                    ),
                    "cot": Variant(tasks=("gsm8k_cot",), what="8 reasoned examples"),
                }
            ),
        ),
        "hellaswag": Benchmark(
            title="HellaSwag, validation split",
            variants=MappingProxyType(
                {
                    "default": Variant(tasks=("hellaswag",), what="no examples"),
                    "alternative": Variant(
                        tasks=("hellaswag",),
                        num_fewshot=10,
                        what="10 examples of the training split",
                    ),
                    "chat": Variant(
                        tasks=("hellaswag",), is_chat=True, what="default in the chat template"
                    ),
                }
            ),
        ),
        "needlebench": Benchmark(
            title="NeedleBench, single-needle retrieval in English and Chinese",
            variants=MappingProxyType(
                {
                    "default": Variant(
                        tasks=_NEEDLES, what="the question asks to consider what is relevant first"
                    ),
                    "alternative": Variant(
                        tasks=("needlebench_unguided_en", "needlebench_unguided_zh"),
                        what="the question alone",
                    ),
                    "chat": Variant(
                        tasks=_NEEDLES, is_chat=True, what="default in the chat template"
                    ),
                }
            ),
            languages=MappingProxyType(
                {
                    "en": Wording(prompt_types=_GUIDED, tasks=_NEEDLES[:1]),
                    "zh": Wording(prompt_types=_GUIDED, tasks=_NEEDLES[1:]),
                }
            ),
            sizes=tuple(SIZES),
        ),
    }
)
