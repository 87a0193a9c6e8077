"""metrics.jsonl: strict JSON, no step twice, nothing lost to a kill; and what the console says."""

import io
import json
import math
import re

import pytest

from llm_train.edge.metrics_log import MetricsLog, cut_after
from llm_train.metrics import (
    Curve,
    EvalMetrics,
    MetricsError,
    StepMetrics,
    curve,
    keep_until,
    read_lines,
    write_line,
)


def step(number: int, **changes) -> StepMetrics:
    values = {
        "step": number,
        "consumed_samples": 4 * number,
        "consumed_tokens": 128 * number,
        "loss": 5.0 / number,
        "lr": 1e-3,
        "grad_norm": 2.0,
        "tokens_per_second": 1000.0,
        "step_time_s": 0.128,
    }
    return StepMetrics(**{**values, **changes})


def strict(line: str):
    """Parse as RFC 8259 does: NaN and Infinity are no JSON."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(line, parse_constant=refuse)


def log(folder, *, first_step=0, max_steps=5, stream=None, **options) -> MetricsLog:
    return MetricsLog(
        folder,
        first_step=first_step,
        max_steps=max_steps,
        num_devices=2,
        stream=stream or io.StringIO(),
        **options,
    )


def steps_in(folder) -> list[int]:
    return [strict(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_has_exactly_the_documented_keys():
    assert strict(write_line(step(2))) == {
        "step": 2,
        "consumed_samples": 8,
        "consumed_tokens": 256,
        "loss": 2.5,
        "lr": 0.001,
        "grad_norm": 2.0,
        "tokens_per_second": 1000.0,
        "step_time_s": 0.128,
        "mfu": None,
        "memory_bytes": None,
        "eta_s": None,
    }
    assert strict(write_line(step(2, skipped=True)))["skipped"] is True
    assert strict(write_line(EvalMetrics(step=2, eval_loss=1.5))) == {"step": 2, "eval_loss": 1.5}


@pytest.mark.parametrize(
    ("value", "written"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")]
)
def test_a_number_json_cannot_say_is_written_as_text(value, written):
    line = write_line(step(1, loss=value, grad_norm=None))
    assert strict(line)["loss"] == written
    assert strict(line)["grad_norm"] is None


def test_a_curve_holds_the_steps_that_have_the_value_with_nan_where_it_was_not_finite():
    lines = [
        step(1),
        step(2, loss=math.inf),
        EvalMetrics(step=2, eval_loss=7.0),
        step(3, grad_norm=None),
    ]
    records = read_lines("".join(map(write_line, lines)), "m")
    assert curve(records, "eval_loss") == Curve([2], [7.0])
    assert curve(records, "grad_norm") == Curve([1, 2], [2.0, 2.0])
    loss = curve(records, "loss")
    assert loss.steps == [1, 2, 3]
    assert loss.values[0] == 5.0
    assert math.isnan(loss.values[1])


def test_a_line_that_was_cut_off_is_left_out_and_a_broken_one_is_named():
    whole = write_line(step(1)) + write_line(step(2))
    assert [record["step"] for record in read_lines(whole[:-5], "m")] == [1]
    with pytest.raises(MetricsError, match=r"run/metrics\.jsonl:2: not JSON .*'oops'"):
        read_lines(write_line(step(1)) + "oops\n", "run/metrics.jsonl")
    with pytest.raises(MetricsError, match=r"m:1: found .* wanted an object with a whole `step`"):
        read_lines('{"loss": 3}\n', "m")


def test_lines_after_the_resumed_step_are_cut_off():
    text = "".join(write_line(step(n)) for n in (1, 2, 3)) + write_line(
        EvalMetrics(step=2, eval_loss=1.0)
    )
    kept = [record["step"] for record in read_lines(keep_until(text, 2, "m"), "m")]
    assert kept == [1, 2, 2]


def test_a_resumed_run_has_every_step_once(tmp_path):
    with log(tmp_path) as first:
        for number in (1, 2, 3, 4):
            first.step(step(number, loss=1.0))
            first.evaluation(EvalMetrics(step=number, eval_loss=1.0))
    with log(tmp_path, first_step=2) as second:
        for number in (3, 4, 5):
            second.step(step(number, loss=2.0))
    assert steps_in(tmp_path) == [1, 1, 2, 2, 3, 4, 5]
    assert list(tmp_path.iterdir()) == [tmp_path / "metrics.jsonl"]


def test_a_new_run_in_an_old_folder_starts_an_empty_file(tmp_path):
    for _ in range(2):
        with log(tmp_path) as run:
            run.step(step(1))
    assert steps_in(tmp_path) == [1]


def test_a_step_is_on_disk_as_soon_as_it_is_recorded(tmp_path):
    with log(tmp_path) as run:
        run.step(step(1))
        assert steps_in(tmp_path) == [1]


def test_cutting_fails_whole_on_a_broken_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("oops\n")
    with pytest.raises(MetricsError):
        cut_after(path, 3)
    assert path.read_text() == "oops\n"


def test_off_a_terminal_a_line_is_printed_every_so_many_steps_and_for_the_last(tmp_path):
    stream = io.StringIO()
    with log(tmp_path, stream=stream, log_every=2) as run:
        for number in range(1, 6):
            run.step(step(number, eta_s=7.0 * (5 - number)))
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["2/5", "4/5", "5/5"]
    # 1000 tokens/s over two devices.
    expected = "step 2/5  loss 2.5000  lr 1.00e-03  grad 2.000  500 tokens/s/device  0.128 s  eta "
    assert lines[0] == expected + "0:00:21"
    assert lines[-1].endswith("eta 0:00:00")


def test_an_evaluation_is_printed_with_its_perplexity(tmp_path):
    stream = io.StringIO()
    with log(tmp_path, stream=stream) as run:
        run.evaluation(EvalMetrics(step=3, eval_loss=math.log(50)))
        run.evaluation(EvalMetrics(step=4, eval_loss=1e6))
    assert stream.getvalue().splitlines() == [
        "step 3: eval loss 3.9120, perplexity 50.00",
        "step 4: eval loss 1000000.0000, perplexity inf",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_bar_shows_the_step(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    with log(tmp_path, stream=stream) as run:
        run.step(step(5))
    shown = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", stream.getvalue())
    # The carriage return that brings the cursor back, and no new line before the end.
    before, drawn = shown.split("\r")
    assert "0/5" in before
    assert "\n" not in before
    assert "5/5 loss 1.0000  lr 1.00e-03  500 tokens/s/device eta 0:00:00" in drawn


def test_tensorboard_gets_the_same_numbers_and_forgets_the_steps_run_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with log(tmp_path, tensorboard=True) as run:
        for number in (1, 2, 3):
            run.step(step(number, grad_norm=None))
    with log(tmp_path, first_step=2, tensorboard=True) as run:
        run.step(step(3, loss=9.0, grad_norm=None))
        run.evaluation(EvalMetrics(step=3, eval_loss=4.0))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(1, 5.0), (2, 2.5), (3, 9.0)]
    assert [(event.step, event.value) for event in events.Scalars("eval/loss")] == [(3, 4.0)]
    assert "train/grad_norm" not in events.Tags()["scalars"]
