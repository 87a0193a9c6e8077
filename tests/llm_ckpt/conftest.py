"""Hugging Face folders by transformers, made once a session; conversions by one call."""

import json
from pathlib import Path

import pytest
import torch

from ckpt_models import save_model
from llm_ckpt.edge.convert import Request, run
from llm_ckpt.edge.open import CheckpointOpener
from llm_ckpt.placement import Pipeline
from llm_ckpt.plan import Target

CONTRACTS = Path(__file__).parents[1] / "contracts"


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory):
    """`hf_folder("llama", tie_word_embeddings=True)`: one folder for equal arguments."""
    made = {}

    def make(family, **options):
        key = (family, tuple(sorted((k, str(v)) for k, v in options.items())))
        if key not in made:
            made[key] = save_model(tmp_path_factory.mktemp(family) / "hf", family, **options)
        return made[key]

    return make


@pytest.fixture
def convert():
    """`convert(src, dst, "v1", tp=2, pp=2, vpp=1, …)`."""

    def convert(
        src, dst, layout, *, pp=1, vpp=1, layers=None, workers=1, iteration=None, **options
    ):
        opener = CheckpointOpener(src, iteration)
        pipeline = Pipeline(pp=pp, vpp=vpp, layers_per_stage=layers)
        flags = {k: options.pop(k) for k in ("is_resumed", "is_overwritten") if k in options}
        request = Request(
            opener=opener,
            destination=dst,
            target=Target(layout=layout, pipeline=pipeline, **options),
            fingerprint=opener.fingerprint(),
            workers=workers,
            **flags,
        )
        return run(request)

    return convert


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def golden_text():
    """The text of a golden arch.json."""
    return lambda name: (CONTRACTS / "arch" / "golden" / f"{name}.json").read_text()


@pytest.fixture(scope="session")
def golden_arch(golden_text):
    """A fresh document of a golden arch.json, to change."""
    return lambda name: json.loads(golden_text(name))
