"""A training run on this rank: everything checked, the device ready, then trained."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llm_train import check
from llm_train.arch import Arch, parse
from llm_train.config import RunConfig, Stage
from llm_train.dataset import DatasetFacts
from llm_train.edge import checkpoint_files
from llm_train.edge.arch_facts import read_document
from llm_train.edge.device import (
    device_name,
    device_session,
    memory_bytes,
    rank_environment,
    resolve,
)
from llm_train.edge.groups import model_parallel
from llm_train.edge.inputs import one_tokenizer, read_inputs, with_boundaries
from llm_train.edge.kernels import open_kernels
from llm_train.edge.metrics_log import MetricsLog
from llm_train.edge.quiet import quiet_libraries
from llm_train.edge.raw_data import with_datasets
from llm_train.edge.samples import open_samples
from llm_train.edge.signals import listening
from llm_train.interfaces import WeightSource
from llm_train.peaks import bf16_peak
from llm_train.weights import arch_of, hf_exporter, open_source

if TYPE_CHECKING:
    from llm_train.edge.checkpoint import Checkpoints
    from llm_train.model.lora.first import FirstAdapter
    from llm_train.train.data import Splits


class RunError(RuntimeError):
    """A run that cannot start or cannot go on."""


def run(config: RunConfig) -> None:
    """Train on this rank until `train.max_steps`, resuming as `save.resume` says.

    Under torchrun or our launcher every rank calls it. Raises RunError, DataError, WeightsError,
    CheckpointError, UnsupportedArchError or DeviceError before anything is trained.
    """
    source = open_source(config.model.load) if config.model.load else None
    arch, document = _arch(config, source)
    if problems := check.problems(config, arch, rank_environment().world_size):
        raise RunError("\n".join(problems))
    config = with_boundaries(with_datasets(config, say=_say))
    facts = read_inputs(config, arch)
    tokenizer_digest = one_tokenizer(config.data, facts, source)
    kind = resolve(config.device.value)
    quiet_libraries()
    kernels = open_kernels(config, arch, device=kind.value)
    if kernels is not None:
        _say(f"{config.kernels}: {kernels}")
    train = config.train
    with (
        device_session(
            kind, timeout_s=train.timeout_s, is_deterministic=train.deterministic
        ) as device,
        model_parallel(config.parallel, seed=train.seed, timeout_s=train.timeout_s),
    ):
        # megatron-core may be imported only now that the device is ready for it.
        from llm_train.train.loop import Loop, Surroundings
        from llm_train.train.training import Training

        first_adapter = _first_adapter(config, document)
        store = _checkpoints(config, document, tokenizer_digest, first_adapter)
        training = Training(
            config,
            arch,
            source=source,
            store=store,
            device=device,
            kernels=kernels,
            first_adapter=first_adapter,
        )
        splits = _splits(config, arch, source, facts)
        is_first = rank_environment().rank == 0
        if is_first:
            _write_companions(config.save.path, document, source)
        log_file = _open_log(config, training.restored.step) if is_first else nullcontext()
        with listening() as stop, log_file as log:
            surroundings = Surroundings(
                log=log,
                stop=stop,
                memory_bytes=partial(memory_bytes, device),
                peak_flops=bf16_peak(device_name(device)),
            )
            Loop(training, splits, surroundings).go()


def _first_adapter(config: RunConfig, document: Mapping[str, object]) -> "FirstAdapter | None":
    from llm_train.edge.adapter_files import first_adapter

    if config.lora is None or config.lora.load is None:
        return None
    return first_adapter(config.lora, config.lora.load, document)


def _splits(
    config: RunConfig, arch: Arch, source: WeightSource | None, facts: Sequence[DatasetFacts]
) -> "Splits":
    """What the run's stage trains on."""
    if config.stage is Stage.SFT:
        return open_samples(config, arch, source=source, say=_say)
    from llm_train.train.data import build_splits

    return build_splits(
        config.data,
        config.train,
        facts=facts[: len(config.data.train)],
        vocab_size=arch.vocab_size,
        cache_dir=config.data.cache_dir or config.save.path / "data_cache",
    )


def _checkpoints(
    config: RunConfig,
    document: Mapping[str, object],
    tokenizer_digest: str | None,
    first_adapter: "FirstAdapter | None",
) -> "Checkpoints":
    from llm_train.edge.adapter_files import adapter_files
    from llm_train.edge.checkpoint import Checkpoints, Kept

    parallel = config.parallel
    # As the contract has them (tests/contracts/checkpoint): cp changes no file.
    sizes = {key: getattr(parallel, key) for key in ("tp", "pp", "vpp", "ep", "etp")}
    return Checkpoints(
        Kept(
            root=config.save.path,
            arch=document,
            tokenizer_digest=tokenizer_digest,
            allow_tokenizer_mismatch=config.data.allow_tokenizer_mismatch,
            parallel={**sizes, "dp": check.layout(config, rank_environment().world_size).dp},
            keep=config.save.keep,
            resume=config.save.resume,
            background=config.save.background,
            export=hf_exporter() if config.save.hf and config.lora is None else None,
            adapter=None if config.lora is None else adapter_files(config, document, first_adapter),
            say=_say,
        )
    )


def _write_companions(
    root: Path, document: Mapping[str, object], source: WeightSource | None
) -> None:
    """arch.json, tokenizer and config files beside the checkpoints, before the first of them."""
    root.mkdir(parents=True, exist_ok=True)
    checkpoint_files.write_json(root / "arch.json", document)
    if source is not None:
        checkpoint_files.copy_companions(root, list(source.companions()))


def _open_log(config: RunConfig, first_step: int) -> MetricsLog:
    return MetricsLog(
        config.save.path,
        first_step=first_step,
        max_steps=config.train.max_steps,
        num_devices=rank_environment().world_size,
        log_every=config.train.log_every,
        tensorboard=config.log.tensorboard,
    )


def _say(text: str) -> None:
    if rank_environment().rank == 0:
        click.echo(text, err=True)


def _arch(config: RunConfig, source: WeightSource | None) -> tuple[Arch, Mapping[str, object]]:
    if source is not None:
        assert config.model.load is not None
        return arch_of(source, where=config.model.load), source.arch
    assert config.model.arch is not None
    document = read_document(config.model.arch)
    return parse(document, where=str(config.model.arch)), document
