"""Losses and gradient norms of 20 steps are those in tests/golden/losses.

`REWRITE_GOLDEN=1 pytest tests/llm_train/test_train_golden.py` rewrites them: only for a change that
is meant to change what training computes.
"""

import copy
import json
import os
from pathlib import Path

import pytest

from train_curves import train_curves

GOLDEN = Path(__file__).parents[1] / "golden" / "losses"
ARCH = Path(__file__).parents[1] / "contracts" / "arch" / "golden" / "qwen3_tiny.json"
MODELS = ("dense", "experts", "dense-bf16")
# Another processor adds up in another order; twenty steps let that grow. bf16 rounds it up.
TOLERANCES = {"dense": 1e-4, "experts": 1e-4, "dense-bf16": 2e-2}


@pytest.fixture(scope="module")
def curves():
    """Filled by the first test, for all of them."""
    return {}


@pytest.fixture
def documents(run_document, moe_arch):
    experts = json.loads(moe_arch.read_text())
    experts["layers"][1]["count"] = 3
    moe_arch.write_text(json.dumps(experts))
    run_document["model"]["arch"] = str(ARCH)
    run_document["train"]["max_steps"] = 20
    found = {name: copy.deepcopy(run_document) for name in MODELS}
    found["experts"]["model"]["arch"] = str(moe_arch)
    found["dense-bf16"]["train"]["precision"] = "bf16"
    return found


@pytest.mark.parametrize("name", MODELS)
def test_losses_are_the_golden_ones(name, documents, curves):
    if not curves:
        curves.update(train_curves(documents, 1))
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("REWRITE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{loss:.6f} {norm:.6f}\n" for loss, norm in curves[name]))
    wanted = [[float(word) for word in line.split()] for line in path.read_text().splitlines()]
    assert len(curves[name]) == len(wanted) == 20
    for step, (found, expected) in enumerate(zip(curves[name], wanted, strict=True), start=1):
        assert found[0] == pytest.approx(expected[0], abs=TOLERANCES[name]), f"loss of {step}"
        relative = 10 * TOLERANCES[name]
        assert found[1] == pytest.approx(expected[1], rel=relative), f"gradient norm of {step}"
