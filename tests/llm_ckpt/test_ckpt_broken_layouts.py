"""Checkpoints with experts that lack something, or hold something else: refused, and why."""

import json
import shutil

import pytest
import torch

from ckpt_zoo import CASES
from llm_ckpt.errors import CheckpointError, FormatError, LayoutError
from llm_ckpt.source import open_source

BY_ID = {case.id: case for case in CASES}
NAME = "qwen3_moe"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return BY_ID[NAME].save(tmp_path_factory.mktemp(NAME) / "hf")


@pytest.fixture
def written(folder, convert, tmp_path):
    def written(layout="v1", **options):
        convert(folder, tmp_path / layout, layout, **options)
        return tmp_path / layout

    return written


def change(root, rank, edit):
    """Rewrite a rank's file by torch's own save."""
    path = root / "iter_0000001" / rank / "model_optim_rng.pt"
    file = torch.load(path, weights_only=False)
    edit(file["model"])
    torch.save(file, path)


def refused(root, message, error=FormatError):
    with pytest.raises(error, match=message):
        open_source(root)


def test_a_missing_expert_rank_is_named(written):
    root = written(ep=2, tp=2)
    shutil.rmtree(root / "iter_0000001/mp_rank_01_001")
    refused(root, r"missing rank files mp_rank_01_001/model_optim_rng\.pt")


def test_a_rank_that_the_sizes_do_not_have_is_named(written):
    root = written(ep=2)
    shutil.copytree(root / "iter_0000001/mp_rank_00_001", root / "iter_0000001/mp_rank_00_002")
    refused(root, r"experts\(\d+\) % \(ep\(3\)\) = ", LayoutError)


def test_folders_named_in_two_ways_are_refused(written):
    root = written(ep=2)
    (root / "iter_0000001/mp_rank_00_001").rename(root / "iter_0000001/mp_rank_01")
    refused(root, "names of different kinds: mp_rank_00_000, mp_rank_01")


def test_a_layer_that_no_file_has_is_counted(written):
    root = written(pp=2)

    def drop(state):
        for name in [name for name in state if name.startswith("decoder.layers.1.")]:
            del state[name]

    change(root, "mp_rank_00_001", drop)
    refused(root, r"the files hold 3 layers .* want 4")


def test_an_expert_of_another_shape_is_named(written):
    root = written(ep=2)
    name = "decoder.layers.2.mlp.experts.local_experts.1.linear_fc1.weight"
    change(root, "mp_rank_00_001", lambda state: state.update({name: state[name][:-2].clone()}))
    refused(root, rf"{name} has shape \[\d+, \d+\], want \[\d+, \d+\]")


def test_grouped_experts_of_another_width_are_refused(written):
    root = written(experts="grouped")
    name = "decoder.layers.0.mlp.experts.weight2"
    change(root, "mp_rank_00", lambda state: state.update({name: state[name].T.contiguous()}))
    refused(root, rf"{name} has shape .* want \[…, \d+\]")


def test_a_name_of_no_dialect_is_unknown(written):
    root = written(ep=2)
    name = "decoder.layers.0.mlp.experts.weight3"
    change(root, "mp_rank_00_000", lambda state: state.update({name: torch.zeros(2)}))
    refused(root, r"1 unknown tensors: decoder\.layers\.0\.mlp\.experts\.weight3", CheckpointError)


def test_an_expert_that_one_rank_lacks_is_missing(written):
    root = written(ep=2)
    name = "decoder.layers.0.mlp.experts.local_experts.0.linear_fc2.weight"
    change(root, "mp_rank_00_001", lambda state: state.pop(name))
    refused(root, r"1 tensors are missing: decoder\.layers\.0\.mlp\.experts", CheckpointError)


def test_stacked_axes_of_v2_of_another_length_are_refused(written):
    root = written("v2")
    document = json.loads((root / "arch.json").read_text())
    document["layers"][0]["count"] += 1
    (root / "arch.json").write_text(json.dumps(document))
    refused(root, r"has shape \[4, .*\], want layers\(5\) in front")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ep": 3}, r"experts\(\d+\) % \(ep\(3\)\) = [12], want 0"),
        ({"etp": 2}, "would hold the expert pieces 0 and 1"),
    ],
)
def test_a_layout_that_does_not_divide_shows_the_equation(options, message, written):
    with pytest.raises(LayoutError, match=message):
        written(**options)


def test_expert_ranks_of_a_dense_model_are_refused(hf_folder, convert, tmp_path):
    with pytest.raises(LayoutError, match=r"ep\(2\): the model has no experts, want 1"):
        convert(hf_folder("qwen3"), tmp_path / "v1", "v1", ep=2)
