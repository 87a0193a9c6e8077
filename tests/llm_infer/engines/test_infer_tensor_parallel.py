"""Models divided among two real ranks: logits of others' code, texts of one rank.

One process computes along for the whole file, told to load one folder after the other.
"""

import json
import random

import pytest
import torch

from ckpt_zoo import CASES, Case
from llm_infer.edge.choices import LoadOptions
from llm_infer.edge.decoders import arch_of, open_source, plan_of
from llm_infer.edge.ranks.lead import Lead
from llm_infer.engines.native import Limits, NativeEngine
from llm_infer.engines.tensor_parallel import SharedModel
from llm_infer.errors import InferError
from llm_infer.model.attention import Carry
from llm_infer.model.group import ALONE, Alone
from llm_infer.model.steps import Part, make_pools, make_step
from llm_infer.sampling import Beams, Sampling
from native_decoder import run

LOGITS_TOLERANCE = 1e-4
BY_ID = {case.id: case for case in CASES}
# Biases and a padded vocabulary, a norm over all heads, ALiBi, learned positions, tied and soft
# capped outputs, sinks, a rope table for long texts; experts, shared, gated, biased; latent
# attention, also of chosen keys; shortcut and zero experts; gated delta nets, Mamba2.
SHAPES = (
    "llama-biases",
    "gemma2",
    "phi3-long",
    "olmo2",
    "bloom-six",
    "gpt2-untied",
    "gpt_oss",
    "qwen2_moe",
    "deepseek_v3",
    "glm_moe_dsa-borrowing",
    "longcat_flash",
    "qwen3_next-mixed",
    "nemotron_h-groups",
)
TEXTS = ("qwen3-windows", "qwen2_moe", "deepseek_v3", "deepseek_v32")


@pytest.fixture(scope="module")
def lead():
    threads = torch.get_num_threads()
    made = Lead(2, device="cpu", end_process=pytest.fail)
    yield made
    made.close()
    torch.set_num_threads(threads)


def open_model(folder, lead=None, **options):
    """On two ranks, or without `lead` on one."""
    options = LoadOptions(engine="native", device="cpu", **options)
    if lead is not None:
        lead.load(folder, options)
    source = open_source(folder, options.lora)
    with source:
        group = ALONE if lead is None else lead.group
        decoder = plan_of(arch_of(source, folder, options), source, options, group=group).read()
    if lead is None:
        return decoder
    lead.join()
    return SharedModel(decoder, lead)


def logits_of(model, tokens, *, cuts=(), is_long=False):
    """[B, T, V] of tokens [B, T]; each text in a block of its own, in steps that end at `cuts`."""
    runner, (batch, length) = model.runner(num_blocks=len(tokens), block_tokens=64), tokens.shape
    found = []
    for start, stop in zip((0, *cuts), (*cuts, length), strict=True):
        parts = [
            Part(
                tokens=tokens[row, start:stop].tolist(),
                first=start,
                blocks=[row],
                wants_logits=False,
                is_long=is_long,
            )
            for row in range(batch)
        ]
        rows = range(batch * (stop - start))
        found.append(runner.run(parts, rows=rows).view(batch, stop - start, -1))
    return torch.cat(found, dim=1)


def check_logits(case, folder, lead):
    case.save(folder)
    longest = json.loads((folder / "config.json").read_text()).get("max_position_embeddings", 24)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 250, (2, min(24, longest)), generator=generator)
    model = open_model(folder, lead)
    is_long = model.short_length is not None and tokens.shape[1] > model.short_length
    found = logits_of(model, tokens, is_long=is_long)
    expected = case.expected_logits(folder, tokens)
    assert found.shape == expected.shape
    difference = (found - expected).abs().max().item()
    alone = logits_of(open_model(folder), tokens, is_long=is_long)
    print(f"{case.id}: {difference:.1e}, from one rank {(found - alone).abs().max().item():.1e}")
    assert difference <= LOGITS_TOLERANCE
    assert (found - alone).abs().max().item() <= LOGITS_TOLERANCE
    assert torch.equal(logits_of(model, tokens, cuts=(7, 8, 15), is_long=is_long), found)


@pytest.mark.parametrize("name", SHAPES)
def test_logits_of_two_ranks_are_those_of_others_in_whatever_steps(name, tmp_path, lead):
    check_logits(BY_ID[name], tmp_path / "hf", lead)


def engine_of(model, *, cache_tokens=64 * 64):
    limits = Limits(cache_tokens=cache_tokens)
    return NativeEngine(model, end_tokens=(), limits=limits, kernels="plain torch")


def long_case(name):
    """The shape with room for texts of several blocks."""
    case = BY_ID[name]
    return Case(case.family, {**case.config, "max_position_embeddings": 256})


@pytest.mark.parametrize("name", TEXTS)
def test_texts_of_two_ranks_are_those_of_one(name, tmp_path, lead):
    """64 tokens alone and in a batch with shared beginnings; drawn ones; beams."""
    folder = long_case(name).save(tmp_path / "hf")
    draw = random.Random(0)
    shared = [draw.randrange(250) for _ in range(100)]
    prompts = [[5, 17, 99, 3, 240], [*shared, 1], [*shared, 2], shared[:70]]
    greedy = [(prompt, Sampling(max_new_tokens=64)) for prompt in prompts]
    drawn = [(prompts[0], Sampling(max_new_tokens=16, temperature=1.0, seed=3, logprobs=2))]
    beams = Sampling(max_new_tokens=12, beams=Beams(num_beams=3))
    one, two = engine_of(open_model(folder)), engine_of(open_model(folder, lead))
    expected = run(one, greedy)
    assert [len(tokens) for tokens in expected] == [64] * 4
    assert run(two, [greedy[0]]) == expected[:1]
    assert run(two, greedy) == expected
    # The second time all of it but the last tokens is found in the cache.
    before = two.stats.shared_tokens
    assert run(two, greedy) == expected
    assert two.stats.shared_tokens - before >= 4 * 64 - 64
    assert run(two, drawn) == run(one, drawn)
    assert list(two.generate(shared, beams)) == list(one.generate(shared, beams))


# One group for two ranks: its queries are divided, its key and value are on both. A norm over all
# heads, biases, gates of queries, sinks.
@pytest.mark.parametrize("name", ["olmo2", "llama-biases", "qwen3_next-mixed", "gpt_oss"])
def test_ranks_share_the_keys_of_a_group(name, tmp_path, lead):
    case = BY_ID[name]
    check_logits(
        Case(case.family, {**case.config, "num_key_value_heads": 1}), tmp_path / "hf", lead
    )


class Rank(Alone):
    """One of several that are asked one after the other, so their parts are added here."""


@pytest.mark.parametrize("size", [2, 4])
def test_four_ranks_of_two_groups_each_have_the_keys_of_their_own(size, tmp_path):
    """The sum of what the ranks' attention gives is that of one rank."""
    folder = Case("qwen3", {**BY_ID["qwen3"].config, "num_key_value_heads": 2}).save(
        tmp_path / "hf"
    )
    options = LoadOptions(device="cpu")
    given = []
    with open_source(folder, None) as source:
        arch = arch_of(source, folder, options)
        for group in (ALONE, *(Rank(rank, size) for rank in range(size))):
            decoder = plan_of(arch, source, options, group=group).read()
            given.append(_attended(decoder))
    difference = (sum(given[1:]) - given[0]).abs().max().item()
    assert difference < 1e-5 * given[0].abs().max().item()


def _attended(decoder):
    """What the first layer's attention gives for ten tokens of a text, [T, H]."""
    part = Part(tokens=list(range(10)), first=0, blocks=[0], wants_logits=True)
    step = make_step([part], block_tokens=64, decoder=decoder)
    pools = make_pools(decoder, num_blocks=1, block_tokens=64)
    pools[0].clear(0, 64)
    x_TH = torch.randn(10, decoder.arch.hidden_size, generator=torch.Generator().manual_seed(0))
    carry = Carry(cos_sin=decoder._rope.at(step.positions, step.variants))
    with torch.inference_mode():
        return decoder._layers[0]._mixer(x_TH, pools[0], step, carry)


def test_what_does_not_divide_is_refused_by_name(tmp_path, lead):
    config = {"num_key_value_heads": 1, "num_attention_heads": 3}
    folder = Case("qwen3", {**BY_ID["qwen3"].config, **config}).save(tmp_path / "hf")
    wanted = r"cannot run this model: attention.heads\(3\) % tp\(2\) = 1, want 0"
    options = LoadOptions(device="cpu")
    with open_source(folder, None) as source, pytest.raises(InferError, match=wanted):
        plan_of(arch_of(source, folder, options), source, options, group=lead.group).read()
