"""The latent zoo would notice: its facts of arch.json and its parameters show in the logits.

As test_ckpt_zoo_facts.py, of latent attention and of routers.
"""

import copy
import re
from collections import defaultdict

import pytest
import torch

from arch_decoder import decode
from ckpt_zoo.latent import CASES
from llm_ckpt.source import open_source

# Ten times what test_ckpt_zoo.py lets pass.
SHOWN = 1e-3
BY_ID = {case.id: case for case in CASES if case.name != "prediction"}
# Another value of a fact, in every case that has the fact.
OTHERS = {
    "mla.scale": lambda value: 0.5 if value is None else value * 2,
    "mla.norm_eps": lambda value: 0.1,
    "mla.q_scale": lambda value: value * 1.5,
    "mla.kv_scale": lambda value: value * 1.5,
    "mla.indexer.top_k": lambda value: value + 1,
    "mla.indexer.rope_interleaved": lambda value: not value,
    "position.base": lambda value: value * 1.5,
    "position.interleaved": lambda value: not value,
    "position.scaling.factor": lambda value: value * 1.5,
    "position.scaling.mscale": lambda value: value and value * 1.5,
    "position.scaling.mscale_all_dim": lambda value: value and value * 1.5,
    "position.scaling.beta_fast": lambda value: value * 4,
    "position.scaling.beta_slow": lambda value: value * 4,
    "moe.top_k": lambda value: value + 1,
    "moe.router.scaling": lambda value: value * 1.5,
    "moe.router.normalize": lambda value: not value,
    "moe.router.pre_softmax": lambda value: not value,
    "moe.router.groups": lambda value: value and 2,
    "moe.router.top_groups": lambda value: value and 1,
    "moe.router.zero_experts": lambda value: None if value == 0 else value - 1,
    "scalars.embedding": lambda value: value * 1.5,
    "scalars.residual": lambda value: value * 1.5,
    "scalars.logits": lambda value: value * 1.5,
}
# Facts that one of another score makes meaningless.
ONLY = {
    "moe.router.pre_softmax": lambda router: router["score"] == "softmax",
    "moe.router.group_score": lambda router: router["groups"] is not None,
    "moe.router.top_groups": lambda router: router["groups"] is not None,
}
OTHERS["moe.router.group_score"] = lambda value: {"max": "top2", "top2": "max"}[value]


def changed(document):
    """(path, document with that one fact changed)."""
    for path, other in OTHERS.items():
        *parents, last = path.split(".")
        again = copy.deepcopy(document)
        target = again
        for key in parents:
            target = target and target.get(key)
        if target is None or last not in target:
            continue
        if path in ONLY and not ONLY[path](target):
            continue
        value = other(target[last])
        if value is not None and value != target[last]:
            target[last] = value
            yield path, again


def tokens():
    return torch.randint(0, 250, (4, 48), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", BY_ID)
def test_every_fact_of_an_architecture_shows_in_the_logits(name, tmp_path):
    hidden = []
    with open_source(BY_ID[name].save(tmp_path / "hf")) as source:
        weights = {name: source.read(name) for name in source.names()}
        right = decode(source.arch, weights.__getitem__, weights, tokens())
        for path, document in changed(source.arch):
            wrong = decode(document, weights.__getitem__, weights, tokens())
            if not (wrong - right).abs().max().item() > SHOWN:
                hidden.append(path)
    assert not hidden


@pytest.mark.parametrize("name", BY_ID)
def test_every_parameter_shows_in_the_logits(name, tmp_path):
    """So that two tensors of one shape cannot have changed places unseen.

    Of a layer's experts, whom a few tokens do not all visit, most must show.
    """
    shown = defaultdict(list)
    with open_source(BY_ID[name].save(tmp_path / "hf")) as source:
        weights = {name: source.read(name) for name in source.names()}
        right = decode(source.arch, weights.__getitem__, weights, tokens())
        for name, weight in weights.items():
            other = weights | {name: weight.flip(0)}
            wrong = decode(source.arch, other.__getitem__, weights, tokens())
            difference = (wrong - right).abs().max().item()
            shown[re.sub(r"local_experts\.\d+", "local_experts", name)].append(difference > SHOWN)
    assert not [name for name, found in shown.items() if sum(found) <= len(found) / 2]
