"""A run from its YAML file to its first step: read, checked, and given its ranks."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import click
import yaml

from llm_train.arch import Arch
from llm_train.check import Layout, layout, notes, problems
from llm_train.config import Device, RunConfig
from llm_train.edge.arch_facts import read_arch
from llm_train.edge.config_file import load
from llm_train.edge.inputs import read_inputs
from llm_train.edge.kernels import find_provider
from llm_train.edge.launch import run_local
from llm_train.edge.raw_data import overrides_for_ranks, with_datasets
from llm_train.overrides import ConfigError

# cuBLAS: its documentation, "Results reproducibility"; NCCL and HCCL: the order of a ring is fixed.
_ONE_ORDER_OF_SUMS = MappingProxyType(
    {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "NCCL_ALGO": "Ring",
        "HCCL_DETERMINISTIC": "true",
        "LCCL_DETERMINISTIC": "1",
    }
)
_NVIDIA_DRIVER = Path("/dev/nvidiactl")


def start(path: Path, overrides: Sequence[str], *, nproc: int | None) -> None:
    """Train as the config at `path` says: as one rank of a launched world, or as the launcher."""
    config = load(path, overrides)
    set_variables(config)
    if "RANK" in os.environ:
        _train(config, announce=os.environ["RANK"] == "0")
        return
    world_size = nproc or fewest_ranks(config)
    arch = checked(config, path, world_size)
    # Both now, not after every rank has loaded megatron-core.
    resolved = with_datasets(config, say=_say)
    read_inputs(resolved, arch)
    if config.kernels is not None:
        find_provider(config.kernels)
    for note in notes(config, arch):
        _say(f"note: {note}")
    if world_size == 1:
        _train(resolved, announce=True)
        return
    logs = config.save.path / "logs"
    _say(f"starting {world_size} ranks on this machine; output of all but rank 0 is in {logs}")
    words = [*overrides, *overrides_for_ranks(config, resolved)]
    command = [sys.executable, "-m", "llm_train", "run", str(path), "--", *words]
    run_local(command, nproc=world_size, log_folder=logs)


def describe(path: Path, overrides: Sequence[str], *, world_size: int | None) -> str:
    """Describe the run: every setting, the model's facts and what falls to each rank."""
    config = load(path, overrides)
    ranks = world_size or fewest_ranks(config)
    arch = checked(config, path, ranks)
    settings = yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False).rstrip()
    lines = [settings, "", _model_line(arch), _layout_line(config, layout(config, ranks))]
    return "\n".join([*lines, *(f"note: {note}" for note in notes(config, arch)), "ok"])


def set_variables(config: RunConfig) -> None:
    """Set what torch must find in this process's environment; before torch is imported."""
    os.environ.update(
        variables_before_torch(
            config.device,
            config.parallel.ranks_of_layer,
            os.environ,
            is_deterministic=config.train.deterministic,
        )
    )


def variables_before_torch(
    device: Device,
    ranks_of_layer: int,
    environment: Mapping[str, str],
    *,
    is_deterministic: bool = False,
) -> dict[str, str]:
    """Return what torch must find in the environment when it is imported.

    megatron-core wraps small functions in torch.compile, which on a CPU calls a C++ compiler for a
    minute in the first step; only an NPU needs the devices that torch loads of itself; and under
    tensor and context parallelism communication is overlapped by the order of a single queue. The
    libraries of a device sum in one order only when told so before they start.
    """
    has_cuda = device is Device.CUDA or (device is Device.AUTO and _NVIDIA_DRIVER.exists())
    wanted: dict[str, str] = {}
    if not has_cuda:
        wanted["TORCH_COMPILE_DISABLE"] = "1"
    if device in (Device.CPU, Device.CUDA):
        wanted["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    if ranks_of_layer > 1:
        wanted["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    if is_deterministic:
        wanted |= _ONE_ORDER_OF_SUMS
    return {name: environment.get(name, value) for name, value in wanted.items()}


def fewest_ranks(config: RunConfig) -> int:
    """Count the ranks of the smallest world that the layout fits into."""
    parallel = config.parallel
    dense, expert = parallel.ranks_of_model, parallel.ep * parallel.etp * parallel.pp
    return math.lcm(dense, expert)


def checked(config: RunConfig, path: Path, world_size: int) -> Arch:
    """The architecture of a run that breaks no rule. Raises ConfigError with every broken one."""
    arch = read_arch(config.model)
    found = problems(config, arch, world_size)
    if found:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in found))
    return arch


def _train(config: RunConfig, *, announce: bool) -> None:
    if announce:
        _say("loading megatron-core ...")
    from llm_train.edge.run import run

    run(config)


def _model_line(arch: Arch) -> str:
    mixers = ", ".join(dict.fromkeys(run.mixer for run in arch.layers))
    experts = "" if arch.moe is None else f", {arch.moe.experts} experts (top {arch.moe.top_k})"
    heads = arch.attention or arch.mla
    attention = "" if heads is None else f", {heads.heads} heads"
    groups = "" if arch.attention is None else f", {arch.attention.query_groups} query groups"
    return (
        f"model: {arch.family}, {arch.num_layers} layers of {mixers}, hidden {arch.hidden_size}"
        f"{attention}{groups}{experts}, vocabulary {arch.vocab_size}, "
        f"positions {arch.max_position_embeddings}"
    )


def _layout_line(config: RunConfig, found: Layout) -> str:
    parallel, train = config.parallel, config.train
    experts = (
        f"; experts: ep({parallel.ep}) * etp({parallel.etp}) * pp({parallel.pp}) * "
        f"dp({found.expert_dp})"
        if parallel.ep * parallel.etp > 1
        else ""
    )
    return (
        f"layout: tp({parallel.tp}) * cp({parallel.cp}) * pp({parallel.pp}) * dp({found.dp}) = "
        f"{found.world_size} ranks{experts}\n"
        f"batch: {found.micro_batches} micro-batches of {train.micro_batch_size} on each of "
        f"{found.dp} = {train.global_batch_size} sequences, {found.tokens_per_step} tokens a step"
    )


def _say(text: str) -> None:
    click.echo(text, err=True)
