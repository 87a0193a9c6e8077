"""Options that must not change the losses, or change them only as far as they may."""

import copy
import json
from pathlib import Path

import pytest

from fork_ranks import run_ranks
from train_curves import tiny_run


def records(document, tmp_path, name, **overrides):
    """The lines of metrics.jsonl after a run of `document` with `overrides`."""
    changed = copy.deepcopy(document)
    for key, value in overrides.items():
        section, _, field = key.partition("__")
        if field:
            changed.setdefault(section, {})[field] = value
        else:
            changed[section] = value
    changed["save"]["path"] = str(tmp_path / name)

    def rank(_rank):
        from llm_train.config_parse import parse
        from llm_train.edge.run import run

        run(parse(changed, [], "test"))

    run_ranks(rank, 1)
    lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses(*arguments, **overrides):
    found = records(*arguments, **overrides)
    return [record["loss"] for record in found if "loss" in record]


@pytest.fixture(scope="module")
def plain(two_layers, toy_prefix, tmp_path_factory):
    """The losses of the run without any option."""
    folder = tmp_path_factory.mktemp("plain")
    return losses(tiny_run(two_layers, data=toy_prefix, save=folder), folder, "run")


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_recompute_is_bit_equal(run_document, plain, tmp_path, mode):
    assert losses(run_document, tmp_path, mode, recompute=mode) == plain


def test_loader_processes_are_bit_equal(run_document, plain, tmp_path):
    assert losses(run_document, tmp_path, "workers", data__num_workers=2) == plain


def test_bf16_stays_near_fp32(run_document, plain, tmp_path):
    found = losses(run_document, tmp_path, "bf16", train__precision="bf16")
    # Three significant digits of bf16, on losses near 5.6.
    assert found == pytest.approx(plain, abs=0.05)
    assert found != plain


def test_fp16_scales_its_loss_and_learns(run_document, plain, tmp_path):
    """A step whose gradients overflow is skipped and said so, and halves the scale."""
    found = records(run_document, tmp_path, "fp16", train__precision="fp16")
    assert sum(record.get("skipped", False) for record in found) <= 3
    assert found[0]["loss"] == pytest.approx(plain[0], abs=0.05)
    assert found[-1]["loss"] < found[0]["loss"]


def test_evaluation_changes_no_training_loss(run_document, plain, toy_prefix, tmp_path):
    found = records(
        run_document,
        tmp_path,
        "with",
        data__valid=[str(toy_prefix)],
        train__eval_every=5,
        train__eval_steps=2,
    )
    assert [record["loss"] for record in found if "loss" in record] == plain
    evaluations = {r["step"]: r["eval_loss"] for r in found if "eval_loss" in r}
    assert list(evaluations) == [5, 10]
    assert evaluations[10] < evaluations[5]  # the same samples, a better model


def test_part_of_the_documents_can_be_held_out(run_document, tmp_path):
    found = records(run_document, tmp_path, "held", data__valid_fraction=0.1, train__eval_every=10)
    assert [r["step"] for r in found if "eval_loss" in r] == [10]


def test_blend_draws_from_every_dataset_as_weighted(run_document, toy_prefix, tmp_path):
    prefixes = [str(toy_prefix), str(_copy(toy_prefix, tmp_path / "copy"))]
    found = losses(run_document, tmp_path, "blend", data__train=prefixes, data__weights=[3.0, 1.0])
    descriptions = list((tmp_path / "blend" / "data_cache").glob("*BlendedDataset*description.txt"))
    assert len(descriptions) == 1
    shares = json.loads(descriptions[0].read_text())["weights"]
    assert shares == pytest.approx([0.75, 0.25])
    assert len(found) == 10


def _copy(prefix, target):
    for suffix in ("bin", "idx"):
        Path(f"{target}.{suffix}").write_bytes(Path(f"{prefix}.{suffix}").read_bytes())
    return target
