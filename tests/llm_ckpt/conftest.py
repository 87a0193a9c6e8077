"""Hugging Face folders by transformers, made once a session; conversions by one call."""

import json
from pathlib import Path

import pytest
import torch

from ckpt_models import save_model
from llm_ckpt.edge.convert import Request, run
from llm_ckpt.edge.open import CheckpointOpener
from llm_ckpt.formats.dialects import Dialect
from llm_ckpt.placement import Grid, Pipeline
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


def layout_options(options):
    """Takes tp, ep, pp, experts … out of `options`; the arguments of `Target` made of them."""
    names = {
        "grid": (Grid, {"tp", "ep", "etp", "tp_extends_ep"}, {}),
        "pipeline": (
            Pipeline,
            {"pp", "vpp", "noop_layers", "schedule", "layers_per_chunk"},
            {"layers": "layers_per_stage"},
        ),
        "dialect": (
            Dialect,
            {"implementation", "experts", "splits_mla"},
            {"dialect": "name"},
        ),
    }
    made = {}
    for part, (kind, keys, renamed) in names.items():
        spelled = {key: key for key in keys} | renamed
        found = {new: options.pop(old) for old, new in spelled.items() if old in options}
        made[part] = kind(**found)
    return made


@pytest.fixture
def convert():
    """`convert(src, dst, "v1", tp=2, pp=2, vpp=1, …)`."""

    def convert(src, dst, layout, *, workers=1, iteration=None, **options):
        opener = CheckpointOpener(src, iteration)
        parts = layout_options(options)
        flags = {k: options.pop(k) for k in ("is_resumed", "is_overwritten") if k in options}
        request = Request(
            opener=opener,
            destination=dst,
            target=Target(layout=layout, **parts, **options),
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
