"""Opening a checkpoint for a conversion: picklable, so that workers open their own."""

from dataclasses import dataclass
from pathlib import Path

from llm_ckpt.edge.folder import locate
from llm_ckpt.source import WeightSource, open_source


@dataclass(frozen=True, slots=True)
class CheckpointOpener:
    """A checkpoint on disk."""

    path: Path
    iteration: int | None = None
    arch: Path | None = None
    adapter: Path | None = None
    lora_alpha: float | None = None

    def __call__(self) -> WeightSource:
        """Open it."""
        return open_source(
            self.path,
            iteration=self.iteration,
            arch=self.arch,
            adapter=self.adapter,
            lora_alpha=self.lora_alpha,
        )

    def fingerprint(self) -> str:
        """Path, sizes and times of the weight files: changes when they do."""
        located = locate(self.path, iteration=self.iteration)
        folders = [located.weights, *([self.adapter] if self.adapter else [])]
        files = sorted(p for folder in folders for p in folder.rglob("*") if p.is_file())
        facts = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
        return repr((str(located.root.resolve()), located.iteration, facts, self.lora_alpha))
