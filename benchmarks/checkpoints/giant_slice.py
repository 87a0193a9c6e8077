"""Converts a few files of a plan too large for this disk, and prints what they took.

python giant_slice.py SRC OUTPUT v2 [FILE NUMBER ...]
"""

import json
import sys
import time
from pathlib import Path

from measured import report

from llm_ckpt.edge.convert import plan_for
from llm_ckpt.edge.open import CheckpointOpener
from llm_ckpt.edge.workers import writing_process
from llm_ckpt.execute import Job, write_planned
from llm_ckpt.formats.stream import sync_file
from llm_ckpt.placement import Grid, Pipeline
from llm_ckpt.plan import Target

PIPELINE = Pipeline(pp=16, layers_per_stage=(3, *[4] * 14, 2))
TARGETS = {
    "v1": Target(layout="v1", grid=Grid(ep=8), pipeline=PIPELINE),
    "v2": Target(layout="v2"),
}


def main() -> None:
    """Plan, then write the chosen files."""
    source, output, layout, *numbers = sys.argv[1:]
    with CheckpointOpener(Path(source))() as opened, writing_process():
        plan = plan_for(opened, TARGETS[layout])
        start, written = time.perf_counter(), 0
        for number in map(int, numbers):
            file = plan.files[number]
            job = Job(plan.target, plan.padded_vocab_size, file, Path(output), 1)
            write_planned(opened, job, lambda _: None)
            sync_file(Path(output) / file.path)
            (Path(output) / file.path).unlink()
            written += file.nbytes
        facts = {
            "bytes": written,
            "total_bytes": plan.total_bytes,
            "files": len(plan.files),
            "write_s": time.perf_counter() - start,
        }
    print(json.dumps(facts))


if __name__ == "__main__":
    report(main)
