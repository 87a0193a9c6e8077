"""Weight gradients that products add to their buffers are those autograd makes in a second pass."""

import json
from pathlib import Path

import pytest

from fork_ranks import run_ranks
from train_curves import curve_of, each_run, tiny_run

GOLDEN = Path(__file__).parents[1] / "contracts" / "arch" / "golden"
# The output multiplies by a weight of its own, by the embedding's, by what is made of its own.
ENDS = {
    "untied": {"tie_embeddings": False},
    "tied": {"tie_embeddings": True},
    "normalized": {"tie_embeddings": False, "output_normalized": True},
}


@pytest.fixture
def documents(toy_prefix, tmp_path):
    """Four steps of two micro-batches with each kind of output, each twice."""
    found = {}
    for name, facts in ENDS.items():
        arch = {**json.loads((GOLDEN / "qwen3_tiny.json").read_text()), **facts}
        arch["layers"][0]["count"] = 2
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(arch))
        document = tiny_run(path, data=toy_prefix, save=tmp_path)
        document["train"] |= {"max_steps": 4}
        found |= {(name, in_products): document for in_products in (True, False)}
    return found


def test_products_add_what_a_second_pass_would(documents):
    """Four linears a layer, and the output where its weight is its own and used as it is."""
    kinds = iter(documents)

    def look(training, splits):
        _, in_products = next(kinds)
        modules = [m for m in training.chunks[0].modules() if hasattr(m, "tp_group")]
        linears = [m for m in modules if hasattr(m, "gradient_accumulation_fusion")]
        count = sum(linear.gradient_accumulation_fusion for linear in linears)
        for linear in linears:
            linear.gradient_accumulation_fusion &= in_products
        (inner,) = training.trainable.optimizer.chained_optimizers
        fused = [group["fused"] for group in inner.optimizer.param_groups]
        return count, fused, curve_of(training, splits)

    found = run_ranks(lambda _rank: dict(each_run(documents, look)), 1)[0]
    for name in ENDS:
        (count, fused, added), (_, _, passed) = found[name, True], found[name, False]
        assert count == 8 + (name == "untied"), name
        assert all(fused)
        for one, two in zip(added, passed, strict=True):
            assert one == pytest.approx(two, rel=1e-6), name
