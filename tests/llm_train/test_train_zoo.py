"""Every model of the zoo, built on megatron-core from its arch.json, gives the logits of others.

The first of each family that transformers ships is compared layer by layer, backward too, in
test_train_hf_parity.py, and here on two ranks only.
"""

import pytest
import torch

from ckpt_zoo import CASES
from fork_ranks import run_ranks

TOKENS, BATCH = 24, 2
TOLERANCE = 1e-4
BY_ID = {case.id: case for case in CASES}
# Every case by itself, and one of each family on two ranks.
FIRST = {case.family: case.id for case in reversed(CASES) if case.max_tp > 1}
SHIPPED = {FIRST[case.family] for case in CASES if case.write is None and case.family in FIRST}
RUNS = [(case.id, 1) for case in CASES if case.id not in SHIPPED]
RUNS += [(name, 2) for name in FIRST.values()]


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """Folder, tokens and expected logits of a case, made once."""
    made = {}

    def make(name):
        if name not in made:
            folder = BY_ID[name].save(tmp_path_factory.mktemp(name) / "hf")
            tokens = torch.randint(
                0, 250, (BATCH, TOKENS), generator=torch.Generator().manual_seed(1)
            )
            made[name] = folder, tokens, BY_ID[name].expected_logits(folder, tokens)
        return made[name]

    return make


def megatron_logits(folder, tokens, *, tp=1, ep=1):
    """Logits [B, T, V] of the model that llm-train builds from a folder."""

    def rank(_rank):
        from llm_train.config import ParallelConfig
        from llm_train.edge.device import DeviceKind, device_session
        from llm_train.edge.groups import model_parallel
        from llm_train.weights import arch_of, open_source

        source = open_source(folder)
        arch = arch_of(source, where=folder)
        parallel = ParallelConfig(tp=tp, ep=ep)
        with device_session(DeviceKind.CPU), model_parallel(parallel, seed=1), torch.no_grad():
            from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

            from llm_train.model.build import build_chunks, padded_vocab_size, transformer_config
            from llm_train.model.fill import fill_from_source

            config = transformer_config(arch, parallel, dtype=torch.float32)
            (chunk,) = build_chunks(arch, config)
            fill_from_source([chunk], source, padded_rows=padded_vocab_size(arch, tp))
            positions = torch.arange(TOKENS)[None].expand(BATCH, -1)
            logits = gather_from_tensor_model_parallel_region(chunk.eval()(tokens, positions, None))
            return logits[..., : arch.vocab_size].clone()

    return run_ranks(rank, max(tp, ep))[0]


@pytest.mark.parametrize(("name", "tp"), RUNS)
def test_megatron_logits_equal_those_of_others(name, tp, reference):
    folder, tokens, wanted = reference(name)
    found = megatron_logits(folder, tokens, tp=tp)
    difference = (found - wanted).abs().max().item()
    print(f"{name} tp{tp}: max logits difference {difference:.1e}, scale {wanted.abs().max():.1f}")
    assert difference <= TOLERANCE


@pytest.mark.parametrize("name", ["gpt_oss"])
def test_logits_of_experts_on_two_ranks_equal_those_of_others(name, reference):
    folder, tokens, wanted = reference(name)
    found = megatron_logits(folder, tokens, ep=2)
    assert (found - wanted).abs().max().item() <= TOLERANCE
