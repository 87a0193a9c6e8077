"""A report of results: a table in markdown, and one HTML page with a bar for each subject."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from types import MappingProxyType
from typing import cast

from llm_eval.errors import EvalError

# One colour a run; a ninth run begins again.
_COLOURS = ("#2f6db5", "#d9822b", "#3b8f5a", "#b04a5a", "#6b5bb0", "#8a6d3b", "#2a9d9d", "#777777")


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A metric of a task in one run."""

    value: float
    stderr: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A metric of a task, with its score in each run (None where a run lacks it)."""

    task: str
    label: str
    metric: str
    scores: tuple[Score | None, ...]
    num_samples: int | None
    is_group: bool

    @property
    def is_fraction(self) -> bool:
        """Whether all values lie between 0 and 1, so that a bar means something."""
        return all(0.0 <= score.value <= 1.0 for score in self.scores if score)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A group with its subjects, or tasks that belong to none."""

    title: str
    total: tuple[Line, ...]
    subjects: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Runs by name, what they were asked of, and their scores."""

    runs: tuple[str, ...]
    about: tuple[str, ...]
    sections: tuple[Section, ...]


def gather(results: Sequence[tuple[str, Mapping[str, object]]]) -> Report:
    """The report of named results in lm-eval's layout."""
    contents = [found for _, found in results]
    lines = _lines(contents)
    if not lines:
        raise EvalError(f"no metrics in {', '.join(name for name, _ in results)}")
    groups: dict[str, tuple[str, ...]] = {}
    for found in contents:
        for group, members in _mapping(found.get("group_subtasks")).items():
            if isinstance(members, list) and members:
                groups[group] = tuple(map(str, cast("list[object]", members)))
    inner = {member for members in groups.values() for member in members}
    sections = [
        Section(
            title=group,
            total=tuple(line for line in lines if line.task == group),
            subjects=tuple(
                line for task in _leaves(group, groups) for line in lines if line.task == task
            ),
        )
        for group in groups
        if group not in inner
    ]
    rest = tuple(line for line in lines if line.task not in groups and line.task not in inner)
    if rest:
        sections.append(Section(title="tasks", total=(), subjects=rest))
    return Report(
        runs=tuple(name for name, _ in results),
        about=tuple(_about(found) for found in contents),
        sections=tuple(sections),
    )


def to_markdown(report: Report) -> str:
    """A table a section: one line a metric, one column a run, with standard errors."""
    parts = ["# Evaluation", ""]
    parts += [f"- **{n}**: {a}" for n, a in zip(report.runs, report.about, strict=True)]
    for section in report.sections:
        parts += ["", f"## {section.title}", ""]
        parts.append("| task | metric | samples | " + " | ".join(report.runs) + " |")
        parts.append("|---|---|---:|" + "---:|" * len(report.runs))
        for line in (*section.total, *section.subjects):
            name = f"**{line.label}**" if line.is_group else line.label
            scores = " | ".join(_shown(score) for score in line.scores)
            parts.append(f"| {name} | {line.metric} | {line.num_samples or ''} | {scores} |")
    return "\n".join(parts) + "\n"


def to_html(report: Report) -> str:
    """One page that fetches nothing: totals as figures, subjects as bars with their error."""
    legend = "".join(
        f'<li><span class="swatch" style="background:{_colour(number)}"></span>'
        f"<b>{escape(name)}</b> {escape(about)}</li>"
        for number, (name, about) in enumerate(zip(report.runs, report.about, strict=True))
    )
    sections = "".join(_section(section, report.runs) for section in report.sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Evaluation</title><style>{_STYLE}</style></head>\n"
        f'<body><h1>Evaluation</h1><ul class="legend">{legend}</ul>\n{sections}</body></html>\n'
    )


def _section(section: Section, runs: Sequence[str]) -> str:
    totals = "".join(
        f'<div class="total"><div class="value">{escape(_shown(score))}</div>'
        f"<div>{escape(line.metric)}</div>"
        f'<div class="run" style="color:{_colour(number)}">{escape(runs[number])}</div></div>'
        for line in section.total
        for number, score in enumerate(line.scores)
    )
    bars = "".join(_bars(line) for line in section.subjects)
    return (
        f"<section><h2>{escape(section.title)}</h2>"
        f'<div class="totals">{totals}</div><table>{bars}</table></section>\n'
    )


def _bars(line: Line) -> str:
    cells = "".join(
        f'<div class="row">{_bar(score, _colour(number)) if line.is_fraction else ""}'
        f'<span class="number">{escape(_shown(score))}</span></div>'
        for number, score in enumerate(line.scores)
    )
    samples = "" if line.num_samples is None else f"{line.num_samples}"
    return (
        f'<tr class="{"group" if line.is_group else "task"}">'
        f'<th scope="row">{escape(line.label)}</th><td class="metric">{escape(line.metric)}'
        f'</td><td class="samples">{samples}</td><td class="bars">{cells}</td></tr>'
    )


def _bar(score: Score | None, colour: str) -> str:
    if score is None:
        return '<span class="track"></span>'
    width = 100 * score.value
    whisker = ""
    if score.stderr:
        low, high = max(0.0, width - 100 * score.stderr), min(100.0, width + 100 * score.stderr)
        whisker = f'<span class="error" style="left:{low:.2f}%;width:{high - low:.2f}%"></span>'
    return (
        f'<span class="track"><span class="bar" style="width:{width:.2f}%;background:{colour}">'
        f"</span>{whisker}</span>"
    )


def _lines(contents: Sequence[Mapping[str, object]]) -> list[Line]:
    keys: dict[tuple[str, str], str] = {}
    for found in contents:
        for task, metrics in _mapping(found.get("results")).items():
            for key in _mapping(metrics):
                if "," in key and not key.split(",")[0].endswith("_stderr"):
                    alias = str(_mapping(metrics).get("alias", task)).strip(" -")
                    keys.setdefault((task, key), alias)
    return [
        Line(
            task=task,
            label=alias,
            metric=key.removesuffix(",none"),
            scores=tuple(_score(found, task, key) for found in contents),
            num_samples=_num_samples(contents, task),
            is_group=any(task in _mapping(found.get("groups")) for found in contents),
        )
        for (task, key), alias in keys.items()
        if any(_score(found, task, key) for found in contents)
    ]


def _score(found: Mapping[str, object], task: str, key: str) -> Score | None:
    metrics = _mapping(_mapping(found.get("results")).get(task))
    value = _number(metrics.get(key))
    name, _, kind = key.partition(",")
    if value is None:
        return None
    return Score(value=value, stderr=_number(metrics.get(f"{name}_stderr,{kind}")))


def _num_samples(contents: Sequence[Mapping[str, object]], task: str) -> int | None:
    for found in contents:
        sizes = _mapping(_mapping(found.get("n-samples")).get(task))
        whole = _mapping(_mapping(found.get("results")).get(task)).get("sample_len")
        number = _number(sizes.get("effective", whole))
        if number is not None:
            return int(number)
    return None


def _leaves(group: str, groups: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Members at any depth; an inner group stands before its own members."""
    found: list[str] = []
    for member in groups.get(group, ()):
        found += [member, *_leaves(member, groups)]
    return found


def _about(found: Mapping[str, object]) -> str:
    config = _mapping(found.get("config"))
    arguments = _mapping(config.get("model_args"))
    known = (arguments.get("pretrained"), config.get("prompt"), arguments.get("dtype"))
    return ", ".join(str(value) for value in known if value)


def _shown(score: Score | None) -> str:
    if score is None:
        return "–"
    if not 0.0 <= score.value <= 1.0:
        return f"{score.value:.4g}"
    error = "" if score.stderr is None else f" ± {100 * score.stderr:.1f}"
    return f"{100 * score.value:.1f}{error} %"


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _number(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    return float(value) if isinstance(value, int | float) else None


def _mapping(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else _EMPTY


_EMPTY: Mapping[str, object] = MappingProxyType({})
_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem} h2{font-size:1.2rem;margin:2rem 0 .6rem;border-bottom:1px solid #8884}
.legend{list-style:none;padding:0} .swatch{display:inline-block;width:.8em;height:.8em;
margin-right:.5em;border-radius:2px}
.totals{display:flex;flex-wrap:wrap;gap:1rem;margin-bottom:1rem}
.total{border:1px solid #8884;border-radius:6px;padding:.6rem 1rem}
.value{font-size:1.3rem;font-weight:600} .run{font-size:.85em}
table{width:100%;border-collapse:collapse} th{text-align:left;font-weight:400}
td,th{padding:.15rem .6rem .15rem 0;vertical-align:middle}
.group th,.group .number{font-weight:600} .group td,.group th{padding-top:.7rem}
.metric,.samples{font-size:.85em;opacity:.7} .samples{text-align:right}
.bars{width:55%} .row{display:flex;align-items:center;gap:.6rem}
.track{position:relative;flex:1;height:.7rem;background:#8882;border-radius:2px}
.bar{position:absolute;inset:0 auto 0 0;border-radius:2px}
.error{position:absolute;top:.3rem;height:.1rem;background:currentColor;opacity:.65}
.number{width:8em;font-variant-numeric:tabular-nums;font-size:.9em}
""".replace("\n", "")
