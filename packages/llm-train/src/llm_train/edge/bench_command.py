"""`llm-train bench`: some steps of a run on random tokens, timed."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from llm_train.arch import Arch
from llm_train.config import Precision, RunConfig
from llm_train.edge.config_file import load
from llm_train.edge.launch import run_local
from llm_train.edge.start import checked, fewest_ranks, set_variables
from llm_train.flops import training_flops
from llm_train.peaks import bf16_peak
from llm_train.speed import Speed, speed, table


def bench(
    path: Path,
    overrides: Sequence[str],
    *,
    nproc: int | None,
    steps: int,
    warmup: int,
    as_json: bool,
) -> None:
    """Time the run of the config at `path`: as one rank of a launched world, or as the launcher."""
    config = load(path, overrides)
    set_variables(config)
    is_rank = "RANK" in os.environ
    world_size = int(os.environ["WORLD_SIZE"]) if is_rank else nproc or fewest_ranks(config)
    arch = checked(config, path, world_size)
    if not is_rank and world_size > 1:
        words = ["--steps", str(steps), "--warmup", str(warmup), *(["--json"] * as_json)]
        command = [sys.executable, "-m", "llm_train", "bench", *words, str(path), "--", *overrides]
        with tempfile.TemporaryDirectory(prefix="llm-train-bench-") as logs:
            run_local(command, nproc=world_size, log_folder=Path(logs))
        return
    found = measure(config, arch, steps=steps, warmup=warmup)
    if found is not None:
        click.echo(json.dumps(dataclasses.asdict(found)) if as_json else table(found))


def measure(config: RunConfig, arch: Arch, *, steps: int, warmup: int) -> Speed | None:
    """Run `warmup` + `steps` steps from random weights on this rank; the speed on rank 0."""
    from llm_train.edge.device import (
        device_name,
        device_session,
        memory_bytes,
        rank_environment,
        resolve,
    )
    from llm_train.edge.groups import model_parallel
    from llm_train.edge.quiet import quiet_libraries
    from llm_train.edge.signals import StopSignal

    place, train = rank_environment(), config.train
    kind = resolve(config.device.value)
    quiet_libraries()
    with (
        device_session(
            kind, timeout_s=train.timeout_s, is_deterministic=train.deterministic
        ) as device,
        model_parallel(config.parallel, seed=train.seed, timeout_s=train.timeout_s),
    ):
        # megatron-core may be imported only now that the device is ready for it.
        from llm_train.train.bench import Collected, NoCheckpoints, RandomTokens, only_steps
        from llm_train.train.data import Splits
        from llm_train.train.loop import Loop, Surroundings
        from llm_train.train.training import Training

        short = only_steps(config, warmup + steps)
        training = Training(short, arch, source=None, store=NoCheckpoints(), device=device)
        tokens = RandomTokens(vocab_size=arch.vocab_size, seq_length=train.seq_length)
        log = Collected()
        around = Surroundings(
            log=log,
            stop=StopSignal(),
            memory_bytes=partial(memory_bytes, device),
            peak_flops=None,
        )
        Loop(training, Splits(train=tokens, valid=None), around).go()
        name = device_name(device)
    if place.rank != 0:
        return None
    return speed(
        log.steps,
        warmup=warmup,
        tokens_per_step=train.global_batch_size * train.seq_length,
        token_flops=training_flops(
            arch,
            train.seq_length,
            is_indexer_frozen=train.indexer_loss_coeff == 0.0,
            is_frozen=config.lora is not None,
        ),
        device=name,
        devices=place.world_size,
        peak_flops=None if train.precision is Precision.FP32 else bf16_peak(name),
    )
