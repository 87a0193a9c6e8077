"""Training checkpoints in megatron-core's sharding-free `torch_dist` layout, with checksums."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.optimizer import MegatronOptimizer

from llm_train import __version__
from llm_train.arch import digest
from llm_train.config import Resume
from llm_train.edge import checkpoint_files as files
from llm_train.interfaces import ExportWeights
from llm_train.model.build import Model
from llm_train.train.optimizer import (
    SHARDING_METADATA,
    match_common_state,
    prepare_state,
    unshare_steps,
)

# Layers keep their own keys, so that models whose layers differ need no second form.
CONTENT = {**SHARDING_METADATA, "non_homogeneous_layers": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """The checkpoints of one run, in its folder."""

    root: Path
    arch: Mapping[str, object]
    tokenizer_digest: str | None
    parallel: Mapping[str, int | None]
    keep: int | None
    resume: Resume
    export: ExportWeights | None
    say: Callable[[str], None]

    def save(
        self,
        chunks: Sequence[Model],
        optimizer: MegatronOptimizer,
        *,
        iteration: int,
        consumed_samples: int,
    ) -> None:
        """Every rank calls this. The checkpoint appears under its name only when it is whole."""
        saving = self.root / f".saving_{iteration:07d}"
        if dist.get_rank() == 0:
            shutil.rmtree(saving, ignore_errors=True)
            saving.mkdir(parents=True)
        dist.barrier()
        prepare_state(optimizer)
        state = _model_state(chunks)
        # The description of the optimizer is built from the model's, which saving takes apart.
        optimizer_state = optimizer.sharded_state_dict(dict(state), metadata=_metadata())
        dist_checkpointing.save(
            {**state, "optimizer": optimizer_state, "iteration": iteration},
            str(saving),
            content_metadata=dict(CONTENT),
        )
        found = _describe_files(saving)
        if dist.get_rank() == 0:
            description = files.Description(
                layout="v2",
                iteration=iteration,
                consumed_samples=consumed_samples,
                arch_digest=digest(self.arch),
                tokenizer_digest=self.tokenizer_digest,
                parallel=self.parallel,
                contains=["weights", "optimizer"],
                files=found,
                created_by=f"llm-train {__version__}",
            )
            files.finish(self.root, saving, description)
            self._export(iteration)
            if self.keep is not None:
                files.prune(self.root, self.keep)
        dist.barrier()

    def restore(self, chunks: Sequence[Model], optimizer: MegatronOptimizer) -> int:
        """Fill model and optimizer from the newest whole checkpoint; steps done, 0 without one."""
        description = None if self.resume is Resume.NEVER else self._newest_whole()
        if description is not None:
            self._load(chunks, optimizer, description)
            self.say(f"resumed from {self.root} at step {description.iteration}")
            return description.iteration
        if self.resume is Resume.REQUIRE:
            raise files.CheckpointError(
                f"{self.root}: no whole checkpoint to resume from, and save.resume=require"
            )
        return 0

    def _export(self, iteration: int) -> None:
        """The checkpoint as a Hugging Face folder; it is whole already, so training goes on."""
        if self.export is None:
            return
        output = files.hf_folder(self.root, iteration)
        try:
            self.export(self.root, iteration=iteration, output=output)
        except (OSError, ValueError) as error:
            self.say(f"{output}: not written, the checkpoint of step {iteration} is: {error}")

    def _newest_whole(self) -> files.Description | None:
        """The newest iteration whose files are all as they were written; damage is told."""
        found: list[str] = []
        for iteration in reversed(files.finished_iterations(self.root)):
            folder = files.iteration_folder(self.root, iteration)
            try:
                description = files.read_description(folder)
                problems = _damage(folder, description)
            except files.CheckpointError as error:
                problems = [str(error)]
            else:
                if not problems:
                    return description
            found.append(problems[0])
            self.say(f"checkpoint {iteration} is damaged, trying the one before: {problems[0]}")
        if found:
            # Starting anew would write over what may still be mended by hand.
            raise files.CheckpointError(
                f"{self.root}: none of its {len(found)} checkpoints is whole ({found[0]}); "
                "use another save.path, or save.resume=never to start anew here"
            )
        return None

    def _load(
        self,
        chunks: Sequence[Model],
        optimizer: MegatronOptimizer,
        description: files.Description,
    ) -> None:
        """Any parallel layout may read what any other wrote."""
        if description.arch_digest != digest(self.arch):
            raise files.CheckpointError(
                f"{self.root}: iteration {description.iteration} is of another architecture "
                f"(digest {description.arch_digest[:12]}…, this run has "
                f"{digest(self.arch)[:12]}…); use another save.path or save.resume=never"
            )
        prepare_state(optimizer)
        state = _model_state(chunks)
        wanted = optimizer.sharded_state_dict(dict(state), is_loading=True, metadata=_metadata())
        folder = files.iteration_folder(self.root, description.iteration)
        loaded = dist_checkpointing.load({**state, "optimizer": wanted}, str(folder))
        assert isinstance(loaded, dict)
        for key, chunk in zip(_chunk_keys(chunks), chunks, strict=True):
            chunk.load_state_dict(loaded.get(key, {}))
        optimizer.load_state_dict(match_common_state(optimizer, loaded["optimizer"]))
        unshare_steps(optimizer)


def _metadata() -> dict[str, Any]:
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return {**CONTENT, "dp_cp_group": group}


def _chunk_keys(chunks: Sequence[Model]) -> list[str]:
    return ["model"] if len(chunks) == 1 else [f"model{index}" for index in range(len(chunks))]


def _model_state(chunks: Sequence[Model]) -> dict[str, Any]:
    return {
        key: chunk.sharded_state_dict(metadata=_metadata())
        for key, chunk in zip(_chunk_keys(chunks), chunks, strict=True)
    }


def _describe_files(folder: Path) -> dict[str, files.FileFacts]:
    """Checksums of everything in `folder`, the work shared out over the ranks."""
    names = sorted(path.name for path in folder.iterdir())
    mine = names[dist.get_rank() :: dist.get_world_size()]
    return {
        k: v
        for part in _gather({n: files.file_facts(folder / n) for n in mine})
        for k, v in part.items()
    }


def _damage(folder: Path, description: files.Description) -> list[str]:
    names = sorted(description.files)[dist.get_rank() :: dist.get_world_size()]
    found = [files.damage(folder, name, description.files[name]) for name in names]
    return [problem for part in _gather([f for f in found if f]) for problem in part]


def _gather(mine: Any) -> list[Any]:
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, mine)
    return everywhere
