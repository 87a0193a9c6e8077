"""`python train_each.py CONFIG...`: `llm-train run` of each on the fake NPU, in one process.

What each run called is written beside its config, as CONFIG.calls.
"""

import sys
from pathlib import Path

from llm_train.cli import main


def train(config: Path) -> None:
    """One run, and its file of calls."""
    main(["run", str(config)], standalone_mode=False)
    # The run has loaded torch_npu, and with it the fake device.
    from fake_npu.device import active

    active().write_counts(config.with_suffix(".calls"))
    active().calls.clear()


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        train(Path(argument))
