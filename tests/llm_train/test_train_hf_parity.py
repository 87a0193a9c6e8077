"""`llm-train parity`: values, gradients and weight gradients equal transformers', or it is said."""

import json

import pytest
from click.testing import CliRunner

from ckpt_zoo import CASES
from fork_ranks import RankError, run_ranks
from llm_train import parity
from llm_train.parity import Comparison, Point, Weight

# One model of each family that transformers ships.
FIRST = {case.family: case for case in reversed(CASES) if case.write is None and case.max_tp > 1}


def compare(folder, *, tokens=24, source=lambda path: None):
    """What the command finds, in a forked process; `source` may hand out other weights."""

    def rank(_rank):
        from llm_train.config import Precision
        from llm_train.edge import parity_run

        opened = parity_run.open_source
        parity_run.open_source = lambda path: source(path) or opened(path)
        options = parity_run.Options(
            precision=Precision.FP32,
            device="cpu",
            batch=2,
            tokens=tokens,
            seed=1,
            tolerance=None,
            has_gradients=True,
        )
        return parity_run.compare(folder, options)

    return run_ranks(rank, 1)[0]


@pytest.mark.parametrize("family", FIRST)
def test_every_layer_and_every_gradient_equals_transformers(family, tmp_path):
    found = compare(FIRST[family].save(tmp_path / "hf"))
    names = [point.name for point in found.points]
    layers = [f"layer {index}" for index in range(len(names) - 3)]
    assert names == ["embedding", *layers, "final norm", "logits"]
    assert all(point.gradient is not None for point in found.points)
    assert all(found.points[1 + index].weight is not None for index in range(len(layers)))
    assert found.is_equal, "\n".join([*parity.table(found), parity.verdict(found)])
    assert found.loss == pytest.approx(found.wanted_loss, abs=1e-5)


def test_zero_experts_are_refused_by_name(tmp_path):
    (case,) = (case for case in CASES if case.family == "longcat_flash")
    with pytest.raises(RankError, match=r"cannot follow moe\.router\.zero_experts=3"):
        compare(case.save(tmp_path / "hf"))


def test_a_wrong_weight_is_found_in_its_layer(tmp_path):
    """Forward parts there and is right again behind it; backward parts there as well."""
    folder = FIRST["qwen3"].save(tmp_path / "hf")

    def source(path):
        from llm_train.weights import open_source

        class Wrong:
            def __init__(self, right):
                self.right = right

            def __getattr__(self, name):
                return getattr(self.right, name)

            def read(self, name, *args, **kwargs):
                tensor = self.right.read(name, *args, **kwargs)
                return tensor * 1.01 if name == "decoder.layers.2.mlp.linear_fc2.weight" else tensor

        return Wrong(open_source(path)) if path == folder else None

    found = compare(folder, source=source)
    assert found.first_forward is not None
    assert found.first_forward.name == "layer 2"
    by_name = {point.name: point for point in found.points}
    assert by_name["layer 2"].alone > 1e-4
    assert max(by_name[f"layer {index}"].alone for index in (0, 1, 3)) < 1e-5
    assert "forward parts first at layer 2" in parity.verdict(found)


def point(name, forward, **more):
    return Point(name=name, forward=forward, **more)


def test_the_verdict_names_the_first_of_each_direction():
    found = Comparison(
        points=(
            point("embedding", 0.0, gradient=0.5),
            point("layer 0", 1e-6, alone=1e-6, gradient=0.2, weight=Weight(name="w", difference=3)),
            point("layer 1", 0.02, alone=0.01, gradient=1e-7),
            point("logits", float("nan")),
        ),
        loss=1.0,
        wanted_loss=1.0,
        tolerance=1e-4,
    )
    assert parity.verdict(found).splitlines() == [
        "forward parts first at layer 1: 2.0e-02 (1.0e-02 of it by itself)",
        "backward parts first at layer 0: 2.0e-01",
        "a weight's gradient parts first at w: 3.0e+00",
        "(more than 1e-04 of the largest value)",
    ]
    assert parity.document(found)["first"] == {
        "forward": "layer 1",
        "gradient": "layer 0",
        "weight": "layer 0",
    }


def test_not_a_number_is_not_equal():
    found = Comparison(
        points=(point("embedding", float("nan")),), loss=1.0, wanted_loss=1.0, tolerance=1.0
    )
    assert not found.is_equal


def test_the_command_prints_and_fails_when_they_part(tmp_path, monkeypatch):
    from llm_train import cli
    from llm_train.edge import parity_run

    apart = Comparison(
        points=(point("logits", 0.5, gradient=0.25),), loss=2.0, wanted_loss=1.0, tolerance=1e-4
    )
    monkeypatch.setattr(parity_run, "compare", lambda folder, options: apart)
    command = ["parity", "--hf", str(tmp_path)]
    shown = CliRunner().invoke(cli.main, command)
    assert shown.exit_code == 1
    assert "loss 2.000000, transformers 1.000000" in shown.stdout
    document = json.loads(CliRunner().invoke(cli.main, [*command, "--json"]).stdout)
    assert document["equal"] is False
    assert document["points"][0]["gradient"] == 0.25
