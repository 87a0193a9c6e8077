"""Tiny models and datasets for training tests, made by libraries we did not write."""

import json
from pathlib import Path

import numpy as np
import pytest

from tiny_archs import EXPERTS
from train_curves import tiny_run

GOLDEN = Path(__file__).parents[1] / "contracts" / "arch" / "golden"


@pytest.fixture(scope="session")
def toy_prefix(tmp_path_factory):
    """A dataset of 200 documents over 250 ids, written by megatron-core's own builder."""
    import fork_ranks

    fork_ranks.warm()
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefix = tmp_path_factory.mktemp("toy") / "toy"
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    random = np.random.RandomState(0)
    for _ in range(200):
        length = random.randint(20, 200)
        tokens = np.cumsum(random.randint(0, 3, length)) % 250
        builder.add_document(torch.from_numpy(tokens.astype(np.uint16)), [length])
    builder.finalize(f"{prefix}.idx")
    return prefix


@pytest.fixture(scope="session")
def two_layers(tmp_path_factory):
    """The tiny Qwen3 with two of its four layers: every test that trains pays for each."""
    arch = json.loads((GOLDEN / "qwen3_tiny.json").read_text())
    arch["layers"][0]["count"] = 2
    path = tmp_path_factory.mktemp("arch") / "two_layers.json"
    path.write_text(json.dumps(arch))
    return path


@pytest.fixture
def run_document(two_layers, toy_prefix, tmp_path):
    """A run of 10 steps from random weights, as a document; tests override what they need."""
    return tiny_run(two_layers, data=toy_prefix, save=tmp_path / "run")


@pytest.fixture
def moe_arch(tmp_path):
    """The tiny Qwen3 with two layers, experts in the second."""
    arch = json.loads((GOLDEN / "qwen3_tiny.json").read_text())
    layer = arch["layers"][0]
    arch["layers"] = [{**layer, "count": 1}, {**layer, "count": 1, "feed_forward": "moe"}]
    arch["moe"] = {**EXPERTS, "ffn_hidden_size": 64}
    path = tmp_path / "moe.json"
    path.write_text(json.dumps(arch))
    return path
