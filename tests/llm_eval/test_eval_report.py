"""The report of two runs in lm-eval's layout, written by hand."""

from html.parser import HTMLParser

import pytest

from llm_eval.errors import EvalError
from llm_eval.report import gather, to_html, to_markdown


def _results(anatomy, law, total, **extra):
    return {
        "results": {
            "mmlu_anatomy": {"alias": "anatomy", "acc,none": anatomy, "acc_stderr,none": 0.05},
            "mmlu_law": {"alias": "law", "acc,none": law, "acc_stderr,none": "N/A"},
            "mmlu": {"alias": "mmlu", "acc,none": total, "sample_len": 30},
            "wikitext": {"alias": "wikitext", "word_perplexity,none": 12.3456},
        },
        "groups": {"mmlu": {}},
        "group_subtasks": {"mmlu": ["mmlu_law", "mmlu_anatomy"]},
        "n-samples": {"mmlu_anatomy": {"original": 20, "effective": 20}},
        "config": {"model_args": {"pretrained": "work/<hf>", "dtype": "auto"}, **extra},
    }


RUNS = [
    ("before", _results(0.25, 0.5, 0.375)),
    ("after", _results(0.75, 0.5, 0.625, prompt="mmlu/default@1")),
]


def test_markdown_has_a_line_a_subject_and_a_column_a_run():
    lines = to_markdown(gather(RUNS)).splitlines()
    assert "| task | metric | samples | before | after |" in lines
    assert "| **mmlu** | acc | 30 | 37.5 % | 62.5 % |" in lines
    assert "| anatomy | acc | 20 | 25.0 ± 5.0 % | 75.0 ± 5.0 % |" in lines
    assert "| law | acc |  | 50.0 % | 50.0 % |" in lines
    assert "| wikitext | word_perplexity |  | 12.35 | 12.35 |" in lines
    assert lines.index("| law | acc |  | 50.0 % | 50.0 % |") == 1 + lines.index(
        "| **mmlu** | acc | 30 | 37.5 % | 62.5 % |"
    )


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.bars, self.fetched, self.open_tags = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if found.get("class") == "bar":
            self.bars.append(found["style"].split(";")[0])
        self.fetched += [value for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "!doctype"):
            self.open_tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag


def test_the_page_fetches_nothing_and_its_bars_are_as_long_as_the_scores():
    page = to_html(gather(RUNS))
    found = _Page(page)
    assert found.fetched == []
    assert "url(" not in page
    assert "@import" not in page
    assert found.open_tags == []
    assert found.bars == ["width:50.00%", "width:50.00%", "width:25.00%", "width:75.00%"]
    assert "work/&lt;hf&gt;" in page
    assert "left:20.00%;width:10.00%" in page


def test_a_run_that_lacks_a_task_has_a_gap():
    other = {"results": {"boolq": {"acc,none": 0.5}}, "config": {}}
    assert "| boolq | acc |  | – | 50.0 % |" in to_markdown(gather([RUNS[0], ("b", other)]))


def test_results_without_metrics_are_refused():
    with pytest.raises(EvalError, match="no metrics in x"):
        gather([("x", {"results": {}})])
