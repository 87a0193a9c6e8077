"""Every family: config both ways, names, shapes, bit-identical round trips, logits of others."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arch_decoder import decode
from ckpt_layouts import v1_layouts
from ckpt_models import assert_same_folder
from ckpt_zoo import CASES
from llm_ckpt.edge.folder import arch_from_file
from llm_ckpt.families import FAMILIES, family_named
from llm_ckpt.source import open_source

LOGITS_TOLERANCE = 1e-4
BY_ID = {case.id: case for case in CASES}


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """The Hugging Face folder of a case, made once for each dtype."""
    made = {}

    def make(case, dtype=torch.float32):
        if (case.id, dtype) not in made:
            made[case.id, dtype] = case.save(tmp_path_factory.mktemp(case.id) / "hf", dtype=dtype)
        return made[case.id, dtype]

    return make


@pytest.mark.parametrize("name", BY_ID)
def test_the_architecture_and_the_weights_give_the_logits_of_others(name, folder_of):
    case = BY_ID[name]
    folder = folder_of(case)
    tokens = torch.randint(0, 250, (2, 24), generator=torch.Generator().manual_seed(1))
    wanted = case.expected_logits(folder, tokens)
    with open_source(folder) as source:
        found = decode(source.arch, source.read, source.names(), tokens)
    difference = (found - wanted).abs().max().item()
    print(f"{name}: max logits difference {difference:.1e}, scale {wanted.abs().max():.1f}")
    assert difference <= LOGITS_TOLERANCE


@pytest.mark.parametrize("name", BY_ID)
def test_a_written_config_says_the_same_architecture(name, folder_of):
    case = BY_ID[name]
    arch = arch_from_file(folder_of(case) / "config.json")
    family = family_named(arch.family, where="test")
    written = family.write_config(arch, dtype="float32")
    again = family.read_config(json.loads(json.dumps(written)), where="written")
    assert again == arch


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_rule_of_a_family_is_used_by_some_case(family, folder_of):
    """So that a misspelt parameter name in a rule cannot lie there unused."""
    used = set()
    for case in CASES:
        if case.family == family.name:
            with open_source(folder_of(case)) as source:
                used |= {entry.rule for entry in source.table.entries.values()}
    unused = [rule.mcore for rule in family.rules if rule not in used]
    assert not [name for name in unused if not name.startswith("mtp.")]


@pytest.mark.parametrize("name", BY_ID)
def test_hf_v1_v2_hf_is_bit_identical(name, folder_of, convert, tmp_path_factory):
    case = BY_ID[name]
    arch = arch_from_file(folder_of(case) / "config.json")

    @settings(
        max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(layout=v1_layouts(case, arch), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
    def trip(layout, dtype):
        folder, work = folder_of(case, dtype), tmp_path_factory.mktemp("trip")
        convert(folder, work / "v1", "v1", **layout)
        convert(work / "v1", work / "v2", "v2")
        convert(work / "v2", work / "hf", "hf")
        assert_same_folder(folder, work / "hf")

    trip()
