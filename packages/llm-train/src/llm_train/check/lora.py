"""Rules of low-rank adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llm_train.arch import Arch
from llm_train.config import LoraConfig, RunConfig
from llm_train.handover import SHORTCUT

EMBEDDING, OUTPUT = "word_embeddings", "output_layer"


def adapters(config: RunConfig, arch: Arch) -> Iterator[str]:
    """Nothing but adapters changes, and everything that is asked for is built."""
    lora = config.lora
    if lora is None:
        return
    refused = {
        "optimizer.frozen": (bool(config.optimizer.frozen), "all but adapters is frozen"),
        "save.hf without model.load": (
            config.save.hf and config.model.load is None,
            "there are no weights to merge adapters into",
        ),
        "moe.bias_update_rate": (
            arch.moe is not None
            and arch.moe.router.bias
            and config.moe.bias_rate(is_frozen=True) > 0,
            "it would change the base; want 0 or null",
        ),
        "train.indexer_loss_coeff": (
            config.train.indexer_loss_coeff > 0,
            "it would change the base",
        ),
        "lora.dropout with lora.dora": (
            lora.dora and lora.dropout > 0,
            "an adapter that scales its base sees what the base sees",
        ),
        **_refused_by_one_pass(lora),
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
    saved = {pattern.rpartition(".")[2] for pattern in lora.modules_to_save} & {EMBEDDING, OUTPUT}
    if saved and (arch.tie_embeddings or arch.mtp is not None):
        one = "tie_embeddings" if arch.tie_embeddings else "mtp"
        yield (
            f"lora.modules_to_save: {min(saved)} is in use at two places ({one}), of which peft "
            "would train a copy at one"
        )
    if OUTPUT in named and arch.output_normalized:
        yield f"lora.target_modules: {OUTPUT} normalises its weight (output_normalized)"
    if lora.fused_mlp and all(run.feed_forward not in ("dense", SHORTCUT) for run in arch.layers):
        yield "lora.fused_mlp: the model has no dense feed-forward; want false"
    if lora.dora and EMBEDDING in named and config.parallel.fsdp:
        yield (
            f"lora.dora of {EMBEDDING} cannot be used with parallel.fsdp: its lengths run over "
            "rows that are shared out; want lora.dora=false, or another target"
        )


def _refused_by_one_pass(lora: LoraConfig) -> Mapping[str, tuple[bool, str]]:
    """Where a linear and its adapter cannot be one function."""
    reasons = {
        "lora.dora": (lora.dora, "it scales the linear's own output"),
        "lora.dropout": (lora.dropout > 0, "the adapter sees another input than the linear"),
    }
    options = {"lora.overlap": lora.overlap, "lora.fused_mlp": lora.fused_mlp}
    return {
        f"{option} with {other}": (is_on and is_set, reason)
        for option, is_on in options.items()
        for other, (is_set, reason) in reasons.items()
    }
