"""The zoo would notice: every fact of arch.json and every parameter shows in the logits.

Without it a family could say a fact or place a tensor wrongly and its logits agree all the same,
because the tiny model does not depend on it.
"""

import copy
import json

import pytest
import torch

from arch_decoder import decode
from ckpt_zoo.dense import CASES
from llm_ckpt.edge.folder import arch_from_file
from llm_ckpt.families import family_named
from llm_ckpt.source import open_source

# Ten times what test_ckpt_zoo.py lets pass.
SHOWN = 1e-3
BY_ID = {case.id: case for case in CASES}


def other(path, value):
    """Another value of a fact, or None where there is no other without other weights."""
    if path.endswith((".kind", ".placement", ".qk_norm", ".original_max_position_embeddings")):
        return None
    if path.endswith("fraction"):
        return 0.5 if value == 1.0 else 1.0
    if path.endswith(("norm.eps", "beta_fast", "beta_slow")):
        return value * 4
    if path.endswith(".activation"):
        return "relu" if value != "relu" else "silu"
    if path.endswith((".interleaved", ".zero_centered", ".rope")):
        return not value
    if path.endswith(".window"):
        return 9 if value is None else value + 1
    if path.endswith(("softcap", "mscale", "clamp")) and value is None:
        return None
    if path == "attention.scale":
        return 0.5 if value is None else value * 2
    if path.startswith(("position.", "scalars.", "attention.softcap")):
        return value * 1.5 if isinstance(value, float) else None
    return None


def changed(document):
    """(path, document with that one fact changed)."""
    position = document["position"]
    # A list of LongRoPE's has the width that rotates; without rotation a layer has none to lose.
    fixed = {"position.fraction"} if (position.get("scaling") or {}).get("short_factor") else set()
    if position["kind"] in ("learned", "none"):
        fixed |= {f"layers.{i}.rope" for i in range(len(document["layers"]))}
    parts = {key: document[key] for key in ("norm", "attention", "position", "mlp", "scalars")}
    parts["position.scaling"] = position.get("scaling")
    places = [(name, part) for name, part in parts.items() if part is not None]
    places += [(f"layers.{i}", run) for i, run in enumerate(document["layers"])]
    for name, part in places:
        for key, value in part.items():
            if isinstance(value, dict | list) or f"{name}.{key}" in fixed:
                continue
            if (new := other(f"{name}.{key}", value)) is not None:
                again = copy.deepcopy(document)
                target = again
                for step in name.split("."):
                    target = target[int(step) if step.isdigit() else step]
                target[key] = new
                yield f"{name}.{key}", again


@pytest.mark.parametrize("name", BY_ID)
def test_every_fact_of_an_architecture_shows_in_the_logits(name, tmp_path):
    case = BY_ID[name]
    tokens = torch.randint(0, 250, (1, 24), generator=torch.Generator().manual_seed(1))
    hidden = []
    with open_source(case.save(tmp_path / "hf")) as source:
        weights = {name: source.read(name) for name in source.names()}
        right = decode(source.arch, weights.__getitem__, weights, tokens)
        for path, document in changed(source.arch):
            wrong = decode(document, weights.__getitem__, weights, tokens)
            if not (wrong - right).abs().max().item() > SHOWN:
                hidden.append(path)
    assert not hidden


@pytest.mark.parametrize("name", BY_ID)
def test_every_parameter_shows_in_the_logits(name, tmp_path):
    """So that two tensors of one shape cannot have changed places unseen."""
    case = BY_ID[name]
    tokens = torch.randint(0, 250, (1, 24), generator=torch.Generator().manual_seed(1))
    hidden = []
    with open_source(case.save(tmp_path / "hf")) as source:
        weights = {name: source.read(name) for name in source.names()}
        right = decode(source.arch, weights.__getitem__, weights, tokens)
        for name, weight in weights.items():
            other = weights | {name: weight.flip(0)}
            wrong = decode(source.arch, other.__getitem__, weights, tokens)
            if not (wrong - right).abs().max().item() > SHOWN:
                hidden.append(name)
    assert not hidden


@pytest.mark.parametrize("name", BY_ID)
def test_transformers_computes_the_same_with_a_written_config(name, tmp_path):
    """Not only our reader understands what `write_config` says."""
    case = BY_ID[name]
    folder = case.save(tmp_path / "hf")
    tokens = torch.randint(0, 250, (1, 24), generator=torch.Generator().manual_seed(1))
    before = case.expected_logits(folder, tokens)
    arch = arch_from_file(folder / "config.json")
    written = family_named(arch.family, where="test").write_config(arch, dtype="float32")
    (folder / "config.json").write_text(json.dumps(written))
    after = case.expected_logits(folder, tokens)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
