"""The README's table of families: each one's largest logits difference over the zoo.

`python tests/support/family_table.py` prints it (ten minutes on two cores): the decoder written
from arch.json, and megatron-core as llm-train builds it, against transformers or the reference of
a family that transformers does not ship.
"""

import tempfile
from pathlib import Path

import torch

from arch_decoder import decode
from ckpt_zoo import CASES, Case
from fork_ranks import run_ranks
from llm_ckpt.source import open_source

TOKENS, BATCH = 24, 2


def decoder_difference(folder: Path, tokens: torch.Tensor, wanted: torch.Tensor) -> float:
    """Of the decoder in tests/support/arch_decoder."""
    with open_source(folder) as source:
        found = decode(source.arch, source.read, source.names(), tokens)
    return (found - wanted).abs().max().item()


def megatron_difference(folder: Path, tokens: torch.Tensor, wanted: torch.Tensor) -> float | None:
    """Of megatron-core; None where llm-train does not build the model yet."""

    def rank(_rank: int) -> torch.Tensor | None:
        from llm_train.config import ParallelConfig
        from llm_train.edge.device import DeviceKind, device_session
        from llm_train.edge.groups import model_parallel
        from llm_train.weights import arch_of
        from llm_train.weights import open_source as open_weights

        source = open_weights(folder)
        arch, parallel = arch_of(source, where=folder), ParallelConfig()
        with device_session(DeviceKind.CPU), model_parallel(parallel, seed=1), torch.no_grad():
            from llm_train.model.build import build_chunks, padded_vocab_size, transformer_config
            from llm_train.model.fields import UnsupportedArchError
            from llm_train.model.fill import fill_from_source

            try:
                config = transformer_config(arch, parallel, dtype=torch.float32)
                (chunk,) = build_chunks(arch, config)
            except UnsupportedArchError:
                return None
            fill_from_source([chunk], source, padded_rows=padded_vocab_size(arch, 1))
            positions = torch.arange(TOKENS)[None].expand(BATCH, -1)
            return chunk.eval()(tokens, positions, None)[..., : arch.vocab_size].clone()

    found = run_ranks(rank, 1)[0]
    return None if found is None else (found - wanted).abs().max().item()


def differences(case: Case, folder: Path) -> tuple[float, float | None]:
    """Both of one case."""
    case.save(folder)
    tokens = torch.randint(0, 250, (BATCH, TOKENS), generator=torch.Generator().manual_seed(1))
    wanted = case.expected_logits(folder, tokens)
    return (
        decoder_difference(folder, tokens, wanted),
        megatron_difference(folder, tokens, wanted),
    )


def main() -> None:
    """Print a row a family as soon as its cases are done."""
    print("| family | cases | decoder of arch.json | megatron-core | against |")
    print("|---|---|---|---|---|")
    for family in dict.fromkeys(case.family for case in CASES):
        cases = [case for case in CASES if case.family == family]
        with tempfile.TemporaryDirectory() as temporary:
            found = [differences(case, Path(temporary) / case.id) for case in cases]
        built = [two for _, two in found if two is not None]
        megatron = f"{max(built):.1e}" if built else "not built yet"
        if built and len(built) < len(cases):
            megatron += f" ({len(built)} of {len(cases)})"
        source = "reference" if cases[0].logits else "transformers"
        decoder = f"{max(one for one, _ in found):.1e}"
        print(f"| {family} | {len(cases)} | {decoder} | {megatron} | {source} |", flush=True)


if __name__ == "__main__":
    main()
