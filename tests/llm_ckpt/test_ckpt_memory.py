"""Peak memory does not grow with the model: measured in fresh processes by the kernel."""

import json
import subprocess
import sys

import pytest
import torch

from llm_ckpt.families import family_named
from llm_ckpt.formats.hf import header_bytes
from llm_ckpt.formats.stream import NewFile

CONFIG = {
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "max_position_embeddings": 64,
    "dtype": "bfloat16",
}
LARGEST = 2 * 4096 * 1024 * 2  # fc1 in bytes
# The peak of importing torch is forgotten first: clear_refs 5 resets it (proc(5)).
MEASURE = """
import re, sys
from pathlib import Path
from llm_ckpt.edge import commands
from llm_ckpt.cli import main
Path("/proc/self/clear_refs").write_text("5")
def status(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = status("VmRSS")
try: main(sys.argv[1:])
except SystemExit as end: assert not end.code
print("grew", status("VmHWM") - before)
"""


@pytest.fixture(autouse=True)
def needs_linux():
    if sys.platform != "linux":
        pytest.skip("peak memory is read from /proc")


def write_model(folder, layers):
    """A folder of `layers` layers of 34 MB, written tensor by tensor."""
    folder.mkdir()
    config = CONFIG | {"num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))
    family = family_named("llama", where="t")
    parts = list(family.table(family.read_config(config, where="t")).hf_parts())
    with NewFile(folder / "model.safetensors") as file:
        file.write(header_bytes([(p.name, torch.bfloat16, p.shape) for p in parts]))
        for part in parts:
            file.write_tensor(torch.ones(part.shape, dtype=torch.bfloat16))
        file.commit()
    return folder


def growth(*args):
    """Bytes that peak memory grew by during a command."""
    command = [sys.executable, "-c", MEASURE, *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(result.stdout.split("grew ")[1]) * 1024


def test_peak_memory_is_two_tensors_and_not_the_model(tmp_path):
    """16 layers are 540 MB; each command may grow by two of the largest tensor and 100 MB.

    Those are for blocks on their way to the disk (32 MB) and for modules imported on the way.
    """
    source = write_model(tmp_path / "hf", 16)
    commands = {
        "v1": ("--to", "mcore", "--tp", "2"),
        "v2": ("--to", "mcore", "--layout", "v2"),
        "back": ("--to", "hf"),
    }
    for name, options in commands.items():
        grown = growth("convert", source, "--output", tmp_path / name, *options)
        print(f"{name}: peak grew by {grown >> 20} MB")
        assert grown < 2 * LARGEST + (100 << 20)
        source = tmp_path / name
