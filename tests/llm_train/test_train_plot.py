"""What is drawn of a run, against numbers worked out by hand, and the files it is drawn into."""

import base64
import math
import struct

import pytest

from llm_train.edge.plot_file import plot_runs
from llm_train.metrics import Curve, MetricsError, read_lines
from llm_train.plot import Summary, labels, run_curves, smooth, smoothing_window, summary

# Written by hand, not by write_line.
LINES = """\
{"step": 1, "consumed_tokens": 64, "loss": 8.0, "lr": 0.5, "grad_norm": 3.0, "tokens_per_second": 10.0}
{"step": 2, "consumed_tokens": 128, "loss": 4.0, "lr": 1.0, "grad_norm": null, "tokens_per_second": 90.0}
{"step": 2, "eval_loss": 5.0}
{"step": 3, "consumed_tokens": 192, "loss": "nan", "lr": 0.5, "grad_norm": 1.0, "tokens_per_second": 80.0}
{"step": 4, "consumed_tokens": 256, "loss": 2.0, "lr": 0.1, "grad_norm": 1.5, "tokens_per_second": 70.0}
{"step": 4, "eval_loss": 2.5}
"""  # noqa: E501


def curves(text: str = LINES):
    return run_curves(read_lines(text, "m"), "run")


def test_each_quantity_becomes_its_own_curve():
    found = curves()
    assert found.eval_loss == Curve([2, 4], [5.0, 2.5])
    assert found.grad_norm == Curve([1, 3, 4], [3.0, 1.0, 1.5])
    assert found.lr == Curve([1, 2, 3, 4], [0.5, 1.0, 0.5, 0.1])
    assert found.tokens_per_second == Curve([1, 2, 3, 4], [10.0, 90.0, 80.0, 70.0])
    assert found.loss.steps == [1, 2, 3, 4]
    assert found.loss.values[:2] + found.loss.values[3:] == [8.0, 4.0, 2.0]
    assert math.isnan(found.loss.values[2])


def test_a_run_is_summed_up_over_its_finite_numbers():
    assert summary(curves()) == Summary(
        label="run",
        steps=4,
        tokens=256,
        loss_first=8.0,
        loss_last=2.0,
        eval_loss_best=2.5,
        tokens_per_second=80.0,
    )


def test_a_run_that_only_diverged_has_no_numbers():
    found = summary(curves('{"step": 1, "loss": "nan"}\n'))
    assert (found.loss_first, found.loss_last, found.tokens, found.tokens_per_second) == (None,) * 4


def test_smoothing_is_the_bias_corrected_average():
    """Weight 2/(3+1) = 1/2: (8), (8 + 2*4)/3, then NaN stays out, then (8 + 2*4 + 4*2)/7."""
    found = smooth([8.0, 4.0, math.nan, 2.0], 3)
    assert found[:2] == pytest.approx([8.0, 16 / 3])
    assert math.isnan(found[2])
    assert found[3] == pytest.approx(24 / 7)


def test_smoothing_keeps_a_constant_and_a_window_of_one_keeps_everything():
    assert smooth([3.0] * 50, 20) == pytest.approx([3.0] * 50)
    assert smooth([1.0, 5.0, 2.0], 1) == [1.0, 5.0, 2.0]


def test_the_window_grows_with_the_run_between_bounds():
    assert [smoothing_window(n) for n in (1, 49, 100, 1000, 10**6)] == [1, 1, 2, 20, 200]


def test_runs_of_the_same_name_are_told_apart_by_their_paths():
    assert labels(["a", "b", "a"], ["x/a", "x/b", "y/a"]) == ["x/a", "b", "y/a"]


def png_size(content: bytes) -> tuple[int, int]:
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


def write_run(folder, text: str = LINES):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def test_the_png_goes_into_the_run_folder_unless_told_otherwise(tmp_path):
    run = write_run(tmp_path / "a")
    assert plot_runs([run], output=None, html=None) == [run / "loss.png"]
    assert png_size((run / "loss.png").read_bytes()) == (1430, 975)


def test_several_runs_are_drawn_over_one_another_in_one_page_that_needs_nothing_else(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b<b>") / "metrics.jsonl"]
    png, page = tmp_path / "out/x.png", tmp_path / "out/x.html"
    assert plot_runs(runs, output=png, html=page) == [png, page]
    text = page.read_text()
    assert "<td>b&lt;b&gt;</td><td>4</td><td>256</td><td>8.0000</td><td>2.0000</td>" in text
    assert "http" not in text
    image = text.partition("base64,")[2].partition('"')[0]
    assert base64.b64decode(image) == png.read_bytes()


def test_only_the_page_is_written_when_only_the_page_is_asked_for(tmp_path):
    run = write_run(tmp_path / "a")
    assert plot_runs([run], output=None, html=run / "x.html") == [run / "x.html"]
    assert not (run / "loss.png").exists()


def test_more_runs_or_fewer_steps_change_the_picture(tmp_path):
    one = write_run(tmp_path / "a")
    short = write_run(tmp_path / "b", LINES.splitlines()[0] + "\n")
    pictures = set()
    for runs in ([one], [short], [one, short]):
        plot_runs(runs, output=tmp_path / "x.png", html=None)
        pictures.add((tmp_path / "x.png").read_bytes())
    assert len(pictures) == 3


def test_a_run_without_metrics_or_without_steps_is_named(tmp_path):
    with pytest.raises(MetricsError, match=r"none/metrics\.jsonl|none: no such file"):
        plot_runs([tmp_path / "none"], output=None, html=None)
    empty = write_run(tmp_path / "empty", "")
    with pytest.raises(MetricsError, match="empty: no step in it yet"):
        plot_runs([empty], output=None, html=None)


def test_a_missing_matplotlib_is_told_with_what_mends_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MetricsError, match=r"pip install 'llm-train\[plot\]'"):
        plot_runs([write_run(tmp_path / "a")], output=None, html=None)
