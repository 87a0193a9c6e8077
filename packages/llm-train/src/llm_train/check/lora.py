"""Rules of low-rank adapters."""

from __future__ import annotations

from collections.abc import Iterator

from llm_train.arch import Arch
from llm_train.config import RunConfig

EMBEDDING, OUTPUT = "word_embeddings", "output_layer"


def adapters(config: RunConfig, arch: Arch) -> Iterator[str]:
    """Nothing but adapters changes, and everything that is asked for is built."""
    lora = config.lora
    if lora is None:
        return
    refused = {
        "parallel.fsdp": (config.parallel.fsdp, "adapters are small; use parallel.tp or pp"),
        "optimizer.frozen": (bool(config.optimizer.frozen), "all but adapters is frozen"),
        "save.hf": (config.save.hf, "each checkpoint has an adapter; llm-ckpt merge-lora merges"),
        "moe.bias_update_rate": (
            arch.moe is not None and arch.moe.router.bias and config.moe.bias_update_rate > 0,
            "it would change the base; want 0",
        ),
        "train.indexer_loss_coeff": (
            config.train.indexer_loss_coeff > 0,
            "it would change the base",
        ),
        "lora.dropout with lora.dora": (
            lora.dora and lora.dropout > 0,
            "an adapter that scales its base sees what the base sees",
        ),
        "moe.shared_expert_overlap": (
            arch.moe is not None and config.moe.shared_expert_overlap,
            "adapters see the tokens of a rank",
        ),
    }
    for name, (is_set, reason) in refused.items():
        if is_set:
            yield f"{name} cannot be used with lora: {reason}"
    named = {target.rpartition(".")[2] for target in lora.target_modules}
    if EMBEDDING in named and arch.tie_embeddings:
        yield (
            f"lora.target_modules: {EMBEDDING} is the output's weight too (tie_embeddings); an "
            "adapter would change one of both, a merge both"
        )
    if OUTPUT in named and arch.output_normalized:
        yield f"lora.target_modules: {OUTPUT} normalises its weight (output_normalized)"
    if lora.dora and EMBEDDING in named:
        yield f"lora.dora: not built for {EMBEDDING}"
