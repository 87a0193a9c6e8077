"""Linear attention and state spaces in Megatron's layouts, against megatron-core's own modules."""

import json

import pytest
import torch

from arch_decoder import decode
from ckpt_megatron_linear import build_gdn, build_mamba
from ckpt_models import assert_same_folder, load_pickle
from ckpt_zoo.case import Case
from ckpt_zoo.state_space import BAMBA, CASES, GDN, MAMBA2, NEMOTRON_H
from fork_ranks import run_ranks
from llm_ckpt.arch import parse_arch
from llm_ckpt.blocks import Param
from llm_ckpt.formats.sections import section_named, sections_of, split_suffix
from llm_ckpt.layout import ROWS, Cut, Shard, cut, join
from llm_ckpt.rules import GdnApart
from llm_ckpt.source import open_source

pytest.importorskip("triton", reason="megatron-core's mamba_mixer imports it")

PADDED = 256  # 250 rows, padded to 128 * tp at tp 1 and 2
LOGITS_TOLERANCE = 1e-4
SHOWN = 1e-3  # ten times that
MODELS = {
    "mamba2": (Case("mamba2", MAMBA2), build_mamba),
    "mamba2-tied": (Case("mamba2", {**MAMBA2, "tie_word_embeddings": True}), build_mamba),
    "nemotron_h": (
        Case(
            "nemotron_h",
            {
                **NEMOTRON_H,
                "layers_block_type": [
                    *("linear_attention", "full_attention", "mlp", "linear_attention", "mlp"),
                ],
            },
        ),
        build_mamba,
    ),
    "bamba": (Case("bamba", BAMBA), build_mamba),
    "qwen3_5_text": (Case("qwen3_5_text", {**GDN, "intermediate_size": 36}), build_gdn),
}


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """The Hugging Face folder of one of MODELS."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = MODELS[name][0].save(tmp_path_factory.mktemp(name) / "hf")
        return made[name]

    return make


def document_of(root):
    return json.loads((root / "arch.json").read_text())


def load_rank(root, rank):
    """As Megatron-LM reads it, by torch's own loader."""
    path = root / f"iter_0000001/mp_rank_{rank:02d}/model_optim_rng.pt"
    return load_pickle(path, mmap=True)["model"]


def sharded(model):
    from megatron.core import parallel_state

    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return {"model": model.sharded_state_dict(metadata={"dp_cp_group": group})}


@pytest.mark.parametrize("name", MODELS)
def test_v1_loads_strictly_into_megatron_core_and_gives_the_logits_of_transformers(
    name, folder_of, convert, tmp_path
):
    case, build = MODELS[name]
    convert(folder_of(name), tmp_path / "v1", "v1")
    tokens = torch.arange(24)[None] * 7 % 250

    def rank(rank):
        model = build(document_of(tmp_path / "v1"), vocab=PADDED)
        model.load_state_dict(load_rank(tmp_path / "v1", rank), strict=True)
        positions = torch.arange(tokens.shape[1])[None]
        with torch.no_grad():
            return model(tokens, positions, None)

    found = run_ranks(rank, 1)[0][..., :250]
    wanted = case.expected_logits(folder_of(name), tokens)
    difference = (found - wanted).abs().max().item()
    print(f"{name}: max logits difference {difference:.2e}, scale {wanted.abs().max():.1f}")
    assert difference <= LOGITS_TOLERANCE


@pytest.mark.parametrize(("tp", "is_fused"), [(1, True), (2, True), (2, False)])
@pytest.mark.parametrize("name", MODELS)
def test_megatron_core_loads_our_v2_as_our_v1(name, tp, is_fused, folder_of, convert, tmp_path):
    convert(folder_of(name), tmp_path / "v1", "v1", tp=tp)
    convert(folder_of(name), tmp_path / "v2", "v2")

    def rank(rank):
        from megatron.core import dist_checkpointing

        document = document_of(tmp_path / "v2")
        model = MODELS[name][1](document, tp=tp, vocab=PADDED, is_fused=is_fused)
        for parameter in model.parameters():
            parameter.data.fill_(-7.0)
        loaded = dist_checkpointing.load(sharded(model), str(tmp_path / "v2/iter_0000001"))
        model.load_state_dict(loaded["model"], strict=True)
        pieces = load_rank(tmp_path / "v1", rank)
        for key, parameter in model.named_parameters():
            assert torch.equal(parameter, pieces.pop(key)), key
        assert not pieces

    run_ranks(rank, tp)


@pytest.mark.parametrize(("tp", "is_fused"), [(1, True), (2, False)])
@pytest.mark.parametrize("name", MODELS)
def test_v2_saved_by_megatron_core_converts_to_hf(name, tp, is_fused, folder_of, convert, tmp_path):
    convert(folder_of(name), tmp_path / "v1", "v1", tp=tp)
    saved = tmp_path / "saved"
    (saved / "iter_0000007").mkdir(parents=True)
    with open_source(folder_of(name)) as source:
        (saved / "arch.json").write_text(json.dumps(source.arch))

    def rank(rank):
        from megatron.core import dist_checkpointing

        model = MODELS[name][1](document_of(saved), tp=tp, vocab=PADDED, is_fused=is_fused)
        model.load_state_dict(load_rank(tmp_path / "v1", rank), strict=True)
        state = sharded(model) | {"iteration": 7}
        dist_checkpointing.save(state, str(saved / "iter_0000007"))

    run_ranks(rank, tp)
    (saved / "latest_checkpointed_iteration.txt").write_text("7")
    convert(saved, tmp_path / "hf", "hf")
    assert_same_folder(folder_of(name), tmp_path / "hf")


IN_PROJ = Param("decoder.layers.0.mixer.in_proj.weight", (22, 3), Cut(0, (6, 6, 4, 4, 2)))


def test_each_kind_of_row_has_its_own_key():
    """Order and labels of `_split_tensor_factory`'s calls in megatron/core/ssm/mamba_mixer.py."""
    found = [(s.suffix, s.start, s.stop) for s in sections_of(IN_PROJ)]
    assert found == [
        *((".z", 0, 6), (".x", 6, 12), (".B", 12, 16), (".C", 16, 20), (".dt", 20, 22)),
    ]
    assert section_named(IN_PROJ, ".C").start == 16


def test_a_parameter_of_one_kind_of_row_has_one_key():
    (section,) = sections_of(Param("decoder.layers.0.mixer.out_proj.weight", (8, 6), Cut(1)))
    assert (section.suffix, section.start, section.stop) == ("", 0, 8)


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("d.mixer.in_proj.weight.dt", ("d.mixer.in_proj.weight", ".dt")),
        ("d.mixer.in_proj.weight", ("d.mixer.in_proj.weight", "")),
        ("d.mixer.conv1d.bias.B", ("d.mixer.conv1d.bias", ".B")),
        ("d.mixer.conv1d.weight.z", ("d.mixer.conv1d.weight.z", "")),
        ("d.self_attention.conv1d.weight.key", ("d.self_attention.conv1d.weight", ".key")),
        ("d.mlp.linear_fc1.weight", ("d.mlp.linear_fc1.weight", "")),
    ],
)
def test_only_known_labels_are_taken_off_a_key(key, wanted):
    assert split_suffix(key) == wanted


@pytest.fixture
def gdn_arch(golden_arch):
    """Two key heads of 3, four value heads of 5."""
    document = golden_arch("llama_tiny")
    document["layers"].append({**document["layers"][0], "mixer": "gdn"})
    document["gdn"] = {"key_heads": 2, "value_heads": 4, "conv_kernel": 4}
    document["gdn"] |= {"key_head_dim": 3, "value_head_dim": 5}
    return parse_arch(document, where="test")


@pytest.mark.parametrize("tp", [1, 2])
def test_four_input_projections_merge_slice_by_slice(tp, gdn_arch):
    rule = GdnApart("m", qkv="qkv", z="z", b="b", a="a")
    sections = (6, 6, 20, 20, 4, 4)
    shape, how = (sum(sections), 7), Cut(0, sections)
    parts = [torch.rand(part) for part in rule.part_shapes(shape, gdn_arch)]
    assert [len(part) for part in parts] == [32, 20, 4, 4]
    merged = rule.merge(parts, gdn_arch)
    assert all(map(torch.equal, rule.split(merged, gdn_arch), parts))
    cuts = rule.part_cuts(how, gdn_arch)
    assert cuts[1:] == (ROWS, ROWS, ROWS)
    pieces = []
    for rank in range(tp):
        shard = Shard(rank, tp)
        slices = [cut(part, c, shard) for part, c in zip(parts, cuts, strict=True)]
        pieces.append(rule.merge(slices, gdn_arch))
        assert torch.equal(pieces[-1], cut(merged, how, shard))
        again = rule.split(pieces[-1], gdn_arch)
        assert all(map(torch.equal, again, slices))
    assert torch.equal(join(pieces, how), merged)


def changed(document):
    """(fact, document with another value of it)."""
    others = {
        "norm": {"eps": 0.1, "zero_centered": not document["norm"]["zero_centered"]},
        "mamba2": {"gated_norm": False},
        "attention": {"scale": 1.0},
        "position": {"base": 10.0, "fraction": 1.0},
        "moe": {"top_k": 2},
    }
    for block, values in others.items():
        for key, value in values.items():
            if document[block] and key in document[block]:
                yield f"{block}.{key}", document | {block: document[block] | {key: value}}


@pytest.mark.parametrize("name", [case.id for case in CASES if case.write is None])
def test_every_parameter_and_fact_shows_in_the_logits(name, tmp_path):
    """So that two tensors of one shape cannot have changed places unseen."""
    case = next(case for case in CASES if case.id == name)
    tokens = torch.randint(0, 250, (4, 24), generator=torch.Generator().manual_seed(1))
    hidden = []
    with open_source(case.save(tmp_path / "hf")) as source:
        weights = {name: source.read(name) for name in source.names()}
        right = decode(source.arch, weights.__getitem__, weights, tokens)

        def check(name, document, read):
            wrong = decode(document, read.__getitem__, weights, tokens)
            if not (wrong - right).abs().max().item() > SHOWN:
                hidden.append(name)

        for fact, document in changed(source.arch):
            check(fact, document, weights)
        for name, weight in weights.items():
            axis = 0 if len(weight) > 1 else -1
            if ".local_experts." not in name:
                check(name, source.arch, weights | {name: weight.flip(axis)})
    assert not hidden
