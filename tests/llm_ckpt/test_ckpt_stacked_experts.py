"""PEFT's adapters of parameters that hold a layer's experts (`target_parameters`)."""

import json

import peft
import pytest
import torch
import transformers

from ckpt_zoo import CASES
from llm_ckpt.arch import parse_arch
from llm_ckpt.edge.adapter_export import export_adapter
from llm_ckpt.edge.adapter_source import open_adapter
from llm_ckpt.edge.convert import Request, run
from llm_ckpt.edge.open import CheckpointOpener
from llm_ckpt.errors import FormatError
from llm_ckpt.placement import Grid, Pipeline
from llm_ckpt.plan import Target
from llm_ckpt.source import open_source
from llm_ckpt.stacked_experts import Stacked, cut, join

# Experts as one transposed tensor of the files, as one under another name, and every one apart.
FAMILIES = ["gpt_oss", "granitemoe", "qwen3_moe", "mixtral"]
BOTH = ["experts.gate_up_proj", "experts.down_proj"]
TOKENS = torch.arange(2, 26)[None]


@pytest.fixture(scope="module", params=FAMILIES)
def base(request, tmp_path_factory):
    (case,) = (one for one in CASES if one.id == request.param)
    return case.save(tmp_path_factory.mktemp("base"))


def adapted_by_peft(base, folder, **options):
    """Saves random adapters of parameters; the logits that they give."""
    torch.manual_seed(1)
    config = peft.LoraConfig(r=3, lora_alpha=7, init_lora_weights=False, **options)
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(folder)
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def merged_by_us(base, adapter, output):
    opener = CheckpointOpener(base, None, None, adapter)
    target = Target(layout="hf", grid=Grid(), pipeline=Pipeline())
    run(Request(opener=opener, destination=output, target=target, fingerprint="test"))
    with torch.no_grad():
        return transformers.AutoModelForCausalLM.from_pretrained(output)(TOKENS).logits


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["o_proj"], "target_parameters": BOTH},
        {"target_modules": [], "target_parameters": BOTH[1:]},
        {
            "target_modules": [],
            "target_parameters": BOTH,
            "rank_pattern": {"experts.down_proj": 5},
            "alpha_pattern": {"experts.gate_up_proj": 2},
        },
    ],
    ids=["both", "one", "patterns"],
)
def test_a_merge_has_pefts_logits(options, base, tmp_path):
    wanted = adapted_by_peft(base, tmp_path / "adapter", **options)
    found = merged_by_us(base, tmp_path / "adapter", tmp_path / "merged")
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_what_is_read_and_written_again_gives_pefts_logits(base, tmp_path):
    """Through the factors that a training run has, by expert."""
    wanted = adapted_by_peft(
        base, tmp_path / "adapter", target_modules=["o_proj"], target_parameters=BOTH
    )
    with open_source(base) as source:
        arch = source.arch
    read = open_adapter(tmp_path / "adapter", arch=arch)
    assert (read.rank, read.scaling) == (3, 7 / 3)
    factors = {}
    for name in read.names():
        one = read.read(name)
        assert one.learns is None
        factors[name] = (one.a, one.b, None)
    experts = parse_arch(dict(arch), where="test").moe.experts
    layers = len({name.split(".")[2] for name in factors})
    assert len(factors) == layers * (1 + 2 * experts)
    export_adapter(
        factors,
        arch=arch,
        rank=3,
        alpha=7,
        use_rslora=False,
        dropout=0.0,
        base=None,
        output=tmp_path / "written",
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model = peft.PeftModel.from_pretrained(model, tmp_path / "written")
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, wanted, atol=1e-5, rtol=1e-5)


def test_rslora_of_experts_is_written_so_that_peft_scales_it_right(base, tmp_path):
    """peft 0.21 doubles rank and alpha where it joins gate and up, which is right without it."""
    adapted_by_peft(base, tmp_path / "adapter", target_modules=[], target_parameters=BOTH)
    with open_source(base) as source:
        arch = source.arch
    read = open_adapter(tmp_path / "adapter", arch=arch)
    factors = {name: (one.a, one.b, None) for name in read.names() if (one := read.read(name))}
    export_adapter(
        factors,
        arch=arch,
        rank=3,
        alpha=7,
        use_rslora=True,
        dropout=0.0,
        base=None,
        output=tmp_path / "written",
    )
    wanted = merged_by_us(base, tmp_path / "written", tmp_path / "merged")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model = peft.PeftModel.from_pretrained(model, tmp_path / "written")
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, wanted, atol=1e-5, rtol=1e-5)
    assert open_adapter(tmp_path / "written", arch=arch).scaling == pytest.approx(7 / 3**0.5)


@pytest.mark.parametrize("has_one_a", [True, False], ids=["one-a", "an-a-each"])
@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe", "minimax_m2"])
def test_peft_has_every_adapter_that_a_run_writes(family, has_one_a, tmp_path):
    """Of dense, shared and routed feed-forwards, which peft's own conversion confuses."""
    (case,) = (one for one in CASES if one.id == family)
    base = case.save(tmp_path / "base")
    torch.manual_seed(2)
    factors, each = {}, {}
    with open_source(base) as source:
        arch = source.arch
        for name in source.names():
            if name.endswith(("fc1.weight", "fc2.weight", "linear_proj.weight")):
                rows, columns = source.shape(name)
                # Two modules, gate and up, may have an A each: each row's B is of its own.
                wide = 4 if has_one_a or not name.endswith("linear_fc1.weight") else 8
                b = torch.randn(rows, wide) * 0.1
                if wide == 8:
                    b[: rows // 2, 4:], b[rows // 2 :, :4] = 0.0, 0.0
                    each[name] = ((4, 6 / 4), (4, 6 / 4))
                factors[name] = (torch.randn(wide, columns) * 0.1, b, None)
    written = tmp_path / "written"
    export_adapter(
        factors,
        arch=arch,
        rank=4,
        alpha=6,
        use_rslora=False,
        dropout=0.1,
        base=None,
        output=written,
        columns=each,
    )
    merged = merged_by_us(base, written, tmp_path / "merged")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    plain = model(TOKENS).logits
    model = peft.PeftModel.from_pretrained(model, written)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, merged, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(plain, merged, atol=1e-2)
    # By hand: every weight of the base with its own product.
    with open_source(base) as before, open_source(tmp_path / "merged") as after:
        for name, (a, b, _) in factors.items():
            torch.testing.assert_close(
                after.read(name), before.read(name) + 6 / 4 * (b @ a), atol=1e-6, rtol=1e-6
            )


def test_experts_of_another_model_are_refused(base, tmp_path):
    adapted_by_peft(base, tmp_path / "adapter", target_modules=[], target_parameters=BOTH)
    path = tmp_path / "adapter" / "adapter_config.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"target_parameters": ["experts.down_proj"]}))
    with pytest.raises(FormatError, match=r"has 2 adapters, of its parameters .* names 1"):
        open_source(base, adapter=tmp_path / "adapter")
    path.write_text(json.dumps(document | {"r": 1000}))
    with pytest.raises(FormatError, match="which at rank 1000 are no whole number of experts"):
        open_source(base, adapter=tmp_path / "adapter")
    (dense,) = (one for one in CASES if one.id == "qwen3")
    path.write_text(json.dumps(document))
    with pytest.raises(
        FormatError, match="is not in the base; parameters that hold its experts: none"
    ):
        open_source(dense.save(tmp_path / "dense"), adapter=tmp_path / "adapter")


def test_cut_and_join_are_inverses():
    experts = [(torch.randn(3, 5), torch.randn(4, 3)) for _ in range(6)]
    a, b = join(experts)
    for index, (own_a, own_b) in enumerate(experts):
        found = cut(a, b, Stacked("x", index, None), experts=6)
        assert torch.equal(found[0], own_a)
        assert torch.equal(found[1], own_b)
        assert torch.equal(cut(a, b, Stacked("x", index, 1), experts=6)[1], own_b[2:])
