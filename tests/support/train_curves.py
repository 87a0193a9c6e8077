"""Trains many runs of one layout in one set of ranks, and keeps nothing on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fork_ranks import run_ranks

Curve = list[tuple[float, float]]


class Recorder:
    """(loss, gradient norm) of every step, and the losses of evaluations."""

    def __init__(self):
        self.curve = []
        self.evaluations = []

    def step(self, metrics):
        self.curve.append((metrics.loss, metrics.grad_norm))

    def evaluation(self, metrics):
        self.evaluations.append(metrics.eval_loss)


def tiny_run(arch: Path, *, data: Path, save: Path) -> dict[str, Any]:
    """A run of 10 steps from random weights, as a document."""
    return {
        "model": {"arch": str(arch), "init_std": 0.1},
        "data": {"train": [str(data)]},
        "train": {
            "max_steps": 10,
            "seq_length": 32,
            "global_batch_size": 8,
            "micro_batch_size": 4,
        },
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        "save": {"path": str(save)},
        "device": "cpu",
    }


def train_curves(documents: Mapping[str, Mapping[str, Any]], world_size: int) -> dict[str, Curve]:
    """The curve of each run by name; the layout and the data are those of the first."""

    def rank(_rank):
        return dict(each_run(documents, curve_of))

    return run_ranks(rank, world_size)[0]


def curve_of(training, splits):
    """Train to the end."""
    recorder = Recorder()
    go(training, splits, recorder)
    return recorder.curve


class Steps:
    """The named metrics of every step, and the loss of every evaluation."""

    def __init__(self, names):
        self.names, self.found = names, []

    def step(self, metrics):
        self.found.append({name: getattr(metrics, name) for name in self.names})

    def evaluation(self, metrics):
        self.found.append({"eval_loss": metrics.eval_loss})


def steps_of(training, splits, names) -> list[dict[str, float | None]]:
    """Train to the end; those metrics of every step."""
    steps = Steps(names)
    go(training, splits, steps)
    return steps.found


def train_steps(documents, world_size, names) -> dict[Any, list[dict[str, float | None]]]:
    """The steps of each run by name, on the same ranks."""

    def look(training, splits):
        return steps_of(training, splits, names)

    return run_ranks(lambda _rank: dict(each_run(documents, look)), world_size)[0]


def go(training, splits, log):
    """Train to the end; `log` gets every step."""
    from llm_train.edge.signals import StopSignal
    from llm_train.train.loop import Loop, Surroundings

    around = Surroundings(log=log, stop=StopSignal(), memory_bytes=lambda: 0, peak_flops=None)
    Loop(training, splits, around).go()


def each_run(documents, look):
    """On a rank: the name of each run and what `look(training, splits)` makes of it."""
    from llm_train.arch import parse as parse_arch
    from llm_train.config_parse import parse
    from llm_train.edge.arch_facts import read_document
    from llm_train.edge.device import DeviceKind, device_session
    from llm_train.edge.groups import model_parallel
    from llm_train.edge.inputs import with_boundaries
    from llm_train.edge.kernels import open_kernels
    from llm_train.train.bench import NoCheckpoints
    from llm_train.train.training import Training
    from llm_train.weights import arch_of, open_source

    configs = {
        name: with_boundaries(parse(document, [], name)) for name, document in documents.items()
    }
    first = next(iter(configs.values()))
    with (
        device_session(DeviceKind.CPU) as device,
        model_parallel(first.parallel, seed=first.train.seed),
    ):
        for name, config in configs.items():
            source = None if config.model.load is None else open_source(config.model.load)
            if source is None:
                arch = parse_arch(read_document(config.model.arch), where=name)
            else:
                arch = arch_of(source, where=config.model.load)
            training = Training(
                config,
                arch,
                source=source,
                store=NoCheckpoints(),
                device=device,
                kernels=open_kernels(config, arch, device=device.type),
            )
            cache_dir = Path(first.save.path) / "data_cache"
            yield name, look(training, _splits(config, arch, source, cache_dir))


def _splits(config, arch, source, cache_dir):
    from llm_train.config import Stage
    from llm_train.edge.inputs import read_datasets
    from llm_train.edge.samples import open_samples
    from llm_train.train.data import build_splits

    if config.stage is Stage.SFT:
        return open_samples(config, arch, source=source, say=lambda _text: None)
    return build_splits(
        config.data,
        config.train,
        facts=read_datasets(config.data, arch),
        vocab_size=arch.vocab_size,
        cache_dir=cache_dir,
    )
