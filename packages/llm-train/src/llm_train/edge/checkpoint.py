"""Training checkpoints in megatron-core's sharding-free `torch_dist` layout, with checksums."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.optimizer import MegatronOptimizer

from llm_train import __version__
from llm_train.arch import digest
from llm_train.config import Resume
from llm_train.edge import checkpoint_files as files
from llm_train.edge.adapter_files import AdapterFiles, Gathered, same_adapters
from llm_train.edge.checkpoint_state import CONTENT, described, fill
from llm_train.edge.checkpoint_write import SaveError, Writing, gather, on_first_rank, together
from llm_train.interfaces import ExportWeights
from llm_train.model.build import Model
from llm_train.model.names import learning_indexer_weights
from llm_train.train.training import Restored

_SAVING = ".saving_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a run's checkpoints are of, and how they are kept."""

    root: Path
    arch: Mapping[str, object]
    tokenizer_digest: str | None
    allow_tokenizer_mismatch: bool
    parallel: Mapping[str, int | None]
    keep: int | None
    resume: Resume
    background: bool
    export: ExportWeights | None
    adapter: AdapterFiles | None
    say: Callable[[str], None]


class Checkpoints:
    """The checkpoints of one run, in its folder; every rank calls every method."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._queue = AsyncCallsQueue()
        self._failure: str | None = None
        self.base_digest: str | None = None

    def save(
        self,
        chunks: Sequence[Model],
        optimizer: MegatronOptimizer,
        *,
        iteration: int,
        consumed_samples: int,
        schedule_steps: int,
        is_last: bool,
    ) -> None:
        """Write a checkpoint, which appears under its name only when it is whole.

        In the background, where that is asked for, unless it is the last. A failure is told and
        leaves nothing behind; the run goes on.
        """
        self.wait()
        kept, self._failure = self._kept, None
        saving = kept.root / f"{_SAVING}{iteration:07d}"
        try:
            on_first_rank(lambda: self._make_room(saving))
            state = described(chunks, optimizer, is_loading=False)
            common = {
                "iteration": iteration,
                "schedule_steps": schedule_steps,
                **({"base_digest": self.base_digest} if self.base_digest is not None else {}),
                **({"lora": dict(kept.adapter.facts)} if kept.adapter is not None else {}),
            }
            adapter = None if kept.adapter is None else kept.adapter.gathered(chunks)
            content = {"content_metadata": dict(CONTENT)}
            writing = Writing({**state, **common, **content}, saving)
            if not self._kept.background or is_last:
                together(writing.write)
        except SaveError as error:
            self._give_up(saving, iteration, error)
            return

        def end() -> None:
            try:
                self._end(writing, iteration, consumed_samples)
                if adapter is not None:
                    on_first_rank(partial(self._write_adapter, adapter, iteration))
            except SaveError as error:
                self._give_up(saving, iteration, error)

        if self._kept.background and not is_last:
            self._queue.schedule_async_request(writing.request._replace(finalize_fns=[end]))
        else:
            end()

    def poll(self) -> None:
        """Finish a checkpoint that every rank has written in the meantime."""
        self._queue.maybe_finalize_async_calls(blocking=False)

    def wait(self) -> None:
        """Finish a checkpoint that is being written in the background."""
        self._queue.maybe_finalize_async_calls(blocking=True)

    def finish(self) -> None:
        """Wait, then raise CheckpointError when the last checkpoint could not be written."""
        self.wait()
        if self._failure is not None:
            raise files.CheckpointError(f"{self._failure}; {self.newest()}")

    def newest(self) -> str:
        """Say which checkpoint a run would go on from."""
        found = files.finished_iterations(self._kept.root)
        if not found:
            return f"no checkpoint is in {self._kept.root}"
        folder = files.iteration_folder(self._kept.root, found[-1])
        return f"the newest checkpoint is {folder}, of step {found[-1]}"

    def restore(self, chunks: Sequence[Model], optimizer: MegatronOptimizer) -> Restored:
        """Fill model and optimizer from the newest whole checkpoint, if there is one."""
        kept = self._kept
        description = None if kept.resume is Resume.NEVER else self._newest_whole()
        if description is not None:
            restored = self._load(chunks, optimizer, description)
            kept.say(f"resumed from {kept.root} at step {description.iteration}")
            return restored
        if kept.resume is Resume.REQUIRE:
            raise files.CheckpointError(
                f"{kept.root}: no whole checkpoint to resume from, and save.resume=require"
            )
        return Restored()

    def _make_room(self, saving: Path) -> None:
        """An empty folder to write into, without what a save that did not finish left."""
        for path in self._kept.root.glob(f"{_SAVING}*"):
            shutil.rmtree(path)
        saving.mkdir(parents=True)

    def _end(self, writing: Writing, iteration: int, consumed_samples: int) -> None:
        """Every rank's part is on disk: describe the whole, and give it its name."""
        kept, found = self._kept, writing.end()
        description = files.Description(
            layout="v2",
            iteration=iteration,
            consumed_samples=consumed_samples,
            arch_digest=digest(kept.arch),
            tokenizer_digest=kept.tokenizer_digest,
            parallel=kept.parallel,
            contains=["weights" if self.base_digest is None else "adapter", "optimizer"],
            files=found,
            created_by=f"llm-train {__version__}",
        )
        on_first_rank(lambda: files.finish(kept.root, writing.folder, description))
        if dist.get_rank() == 0:
            self._export(iteration)
            self._prune()
        dist.barrier()

    def _give_up(self, saving: Path, iteration: int, error: SaveError) -> None:
        """Say so, and leave nothing half written."""
        if dist.get_rank() == 0:
            shutil.rmtree(saving, ignore_errors=True)
        self._failure = (
            f"the checkpoint of step {iteration} could NOT be saved: {error} "
            f"({_free_gib(self._kept.root):.1f} GiB are free in {self._kept.root})"
        )
        self._kept.say(f"WARNING: {self._failure}")
        dist.barrier()

    def _prune(self) -> None:
        if self._kept.keep is None:
            return
        try:
            files.prune(self._kept.root, self._kept.keep)
        except OSError as error:
            self._kept.say(f"WARNING: an old checkpoint could not be removed: {error}")

    def _export(self, iteration: int) -> None:
        """The checkpoint as a Hugging Face folder; it is whole already, so training goes on."""
        if self._kept.export is None:
            return
        output = files.hf_folder(self._kept.root, iteration)
        try:
            self._kept.export(self._kept.root, iteration=iteration, output=output)
        except (OSError, ValueError) as error:
            self._kept.say(f"{output}: not written, the checkpoint of step {iteration} is: {error}")

    def _write_adapter(self, adapter: Gathered, iteration: int) -> None:
        """The adapters as a PEFT folder, and merged where that is wanted.

        The checkpoint is whole already, so training goes on.
        """
        kept = self._kept
        assert kept.adapter is not None
        output = files.adapter_folder(kept.root, iteration)
        try:
            kept.adapter.write(adapter, output, base_digest=self.base_digest)
            if kept.adapter.merged is not None:
                folder, output = output, files.hf_folder(kept.root, iteration)
                kept.adapter.merged.write(folder, output, quantized=adapter.quantized)
        except (OSError, ValueError) as error:
            kept.say(f"{output}: not written, the checkpoint of step {iteration} is: {error}")

    def _same_base(self, folder: Path, loaded_digest: str | None) -> None:
        """Adapters belong to the weights that they were trained on."""
        if loaded_digest == self.base_digest:
            return
        if loaded_digest is None or self.base_digest is None:
            holds = "the whole model" if loaded_digest is None else "adapters alone"
            wants = "adapters (lora)" if loaded_digest is None else "the whole model"
            raise files.CheckpointError(
                f"{folder}: holds {holds}, this run trains {wants}; want another save.path"
            )
        raise files.CheckpointError(
            f"{folder}: its adapters are for a base with digest {loaded_digest[:12]}…, "
            f"model.load has {self.base_digest[:12]}…; want that base, or another save.path"
        )

    def _same_lora(self, folder: Path, loaded: Mapping[str, object] | None) -> None:
        """The outputs of adapters are those that they were trained to have."""
        if self._kept.adapter is None or loaded is None:  # of a version that did not note them
            return
        for key, ours in self._kept.adapter.facts.items():
            if (theirs := loaded.get(key)) != ours:
                raise files.CheckpointError(
                    f"{folder}: its adapters have lora {key} {theirs}, this run has {ours}; want "
                    "it as it was, or another save.path and lora.load"
                )

    def _newest_whole(self) -> files.Description | None:
        """The newest iteration whose files are all as they were written; damage is told."""
        found: list[str] = []
        for iteration in reversed(files.finished_iterations(self._kept.root)):
            folder = files.iteration_folder(self._kept.root, iteration)
            try:
                description = files.read_description(folder)
                problems = _damage(folder, description)
            except files.CheckpointError as error:
                problems = [str(error)]
            else:
                if not problems:
                    return description
            found.append(problems[0])
            self._kept.say(
                f"checkpoint {iteration} is damaged, trying the one before: {problems[0]}"
            )
        if found:
            # Starting anew would write over what may still be mended by hand.
            raise files.CheckpointError(
                f"{self._kept.root}: none of its {len(found)} checkpoints is whole ({found[0]}); "
                "use another save.path, or save.resume=never to start anew here"
            )
        return None

    def _same_tokenizer(self, description: files.Description) -> None:
        """What the checkpoint was trained on and what this run reads name one tokenizer."""
        kept, theirs = self._kept, description.tokenizer_digest
        if kept.allow_tokenizer_mismatch or None in (theirs, kept.tokenizer_digest):
            return
        if theirs != kept.tokenizer_digest:
            raise files.CheckpointError(
                f"{kept.root}: iteration {description.iteration} was trained with tokenizer "
                f"{str(theirs)[:12]}…, this run's data are of {str(kept.tokenizer_digest)[:12]}…; "
                "want one, or data.allow_tokenizer_mismatch=true"
            )

    def _same_learning(self, chunks: Sequence[Model], folder: Path) -> None:
        """Indexers that learn have done so before: else there are no moments of theirs."""
        learning = [name for chunk in chunks for name in learning_indexer_weights(chunk)]
        held = dist_checkpointing.load_tensors_metadata(str(folder)) if learning else {}
        fresh = [name for name in learning if f"optimizer.state.exp_avg.{name}" not in held]
        if fresh:
            raise files.CheckpointError(
                f"{folder}: no optimizer state of {len(fresh)} weights that learn now, "
                f"{fresh[0]} the first: train.indexer_loss_coeff was 0; want it 0 again, or "
                f"another save.path and model.load={self._kept.root}"
            )

    def _load(
        self,
        chunks: Sequence[Model],
        optimizer: MegatronOptimizer,
        description: files.Description,
    ) -> Restored:
        """Any parallel layout may read what any other wrote."""
        if description.arch_digest != digest(self._kept.arch):
            raise files.CheckpointError(
                f"{self._kept.root}: iteration {description.iteration} is of another architecture "
                f"(digest {description.arch_digest[:12]}…, this run has "
                f"{digest(self._kept.arch)[:12]}…); use another save.path or save.resume=never"
            )
        self._same_tokenizer(description)
        folder = files.iteration_folder(self._kept.root, description.iteration)
        common = dist_checkpointing.load_common_state_dict(str(folder))
        self._same_base(folder, common.get("base_digest"))
        wanted = described(chunks, optimizer, is_loading=True)
        if self.base_digest is not None:
            same_adapters(wanted, folder)
            self._same_lora(folder, common.get("lora"))
        self._same_learning(chunks, folder)
        loaded = dist_checkpointing.load(wanted, str(folder))
        assert isinstance(loaded, dict)
        fill(chunks, optimizer, loaded)
        return Restored(
            step=description.iteration,
            # A checkpoint of a version that did not note them, or that skipped none.
            schedule_steps=loaded.get("schedule_steps", description.iteration),
            consumed_samples=description.consumed_samples,
        )


def _free_gib(folder: Path) -> float:
    """Room for `folder`, which may be what could not be made."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free / (1 << 30)


def _damage(folder: Path, description: files.Description) -> list[str]:
    names = sorted(description.files)[dist.get_rank() :: dist.get_world_size()]
    found = [files.damage(folder, name, description.files[name]) for name in names]
    return [problem for part in gather([f for f in found if f]) for problem in part]
