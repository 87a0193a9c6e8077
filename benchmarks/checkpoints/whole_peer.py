"""The peer: loads everything, makes the whole Megatron model, splits it, saves each rank.

It does the same sums as llm-ckpt (its rules and cuts are pure functions of torch tensors) and ends
as durably; what differs is that all tensors are in memory at once.

    python whole_peer.py SRC OUTPUT TP
"""

import os
import sys
from pathlib import Path

import torch
from measured import report
from safetensors.torch import load_file

from llm_ckpt.edge.folder import arch_from_file
from llm_ckpt.families import family_named
from llm_ckpt.layout import Shard, cut


def main() -> None:
    """Convert."""
    source, output, tp = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    arch = arch_from_file(source / "config.json")
    table = family_named(arch.family, where=str(source)).table(arch)
    loaded: dict[str, torch.Tensor] = {}
    for file in sorted(source.glob("*.safetensors")):
        loaded |= load_file(file)
    model = {
        name: entry.rule.merge([loaded[part.name] for part in entry.parts], arch)
        for name, entry in table.entries.items()
    }
    for rank in range(tp):
        state = {
            name: cut(tensor, table.entries[name].param.cut, Shard(rank, tp)).clone()
            for name, tensor in model.items()
        }
        path = output / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
        path.parent.mkdir(parents=True)
        with path.open("wb") as out:
            torch.save({"model": state, "checkpoint_version": 3.0}, out)
            out.flush()
            os.fsync(out.fileno())


if __name__ == "__main__":
    report(main)
