"""Devices: what is absent is refused, what is patched is put back."""

import subprocess
import sys

import pytest
import torch

from fork_ranks import run_ranks
from llm_train.edge import device
from llm_train.edge.patches import Patches


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_absent_cuda_is_refused_with_what_is_here():
    with pytest.raises(device.DeviceError, match="device=cuda: found cpu; choose one of those"):
        device.resolve("cuda")
    assert device.resolve("auto") is device.DeviceKind.CPU


def test_patches_are_undone_in_order():
    class Owner:
        kept = 1

    patches = Patches()
    patches.set(Owner, "kept", 2)
    patches.set(Owner, "kept", 3)
    patches.set(Owner, "new", 4)
    assert (Owner.kept, Owner.new) == (3, 4)
    patches.undo()
    assert Owner.kept == 1
    assert not hasattr(Owner, "new")


def test_session_maps_cuda_onto_the_cpu_and_back():
    def rank(_rank):
        before = (torch.tensor, torch.compile, torch.cuda.current_device)
        with device.device_session(device.DeviceKind.CPU):
            inside = torch.zeros(2, device="cuda").device.type, torch.ones(1).type()
        after = (torch.tensor, torch.compile, torch.cuda.current_device)
        return inside, before == after

    assert run_ranks(rank, 1) == [(("cpu", "torch.cuda.FloatTensor"), True)]


def test_a_lone_rank_gathers_and_reduces_without_sending():
    """Sent through gloo it would still be right, and every step slower."""

    def rank(_rank):
        from megatron.core.distributed import param_and_grad_buffer as buffers

        def sent(*_args, **_kwargs):
            raise AssertionError("a lone rank sent something")

        buffers.dist_all_gather_func = buffers.dist_reduce_scatter_func = sent
        with device.device_session(device.DeviceKind.CPU):
            group, values = torch.distributed.group.WORLD, torch.arange(4.0)
            found = []
            with buffers._coalescing_manager(group, async_ops=True) as handle:
                for name in ("dist_all_gather_func", "dist_reduce_scatter_func"):
                    found.append(torch.zeros(4))
                    getattr(buffers, name)(found[-1], values, group=group, async_op=True)
            handle.wait()
            return [one.tolist() for one in found]

    assert run_ranks(rank, 1) == [[[0.0, 1.0, 2.0, 3.0]] * 2]


def test_importing_llm_train_patches_nothing():
    code = (
        "import torch; before = (torch.tensor, torch.Tensor.to, torch.compile)\n"
        "import llm_train, llm_train.edge.device, llm_train.edge.patches, llm_train.edge.run\n"
        "assert before == (torch.tensor, torch.Tensor.to, torch.compile)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_training_on_a_cpu_does_not_import_dynamo(run_document, tmp_path):
    """It would cost each rank seconds at start-up, and a C++ compiler in the first step."""
    run_document["train"]["max_steps"] = 3
    path = tmp_path / "run.json"
    import json

    path.write_text(json.dumps(run_document))
    code = (
        "import sys; from pathlib import Path\n"
        "from llm_train.edge.config_file import load; from llm_train.edge.run import run\n"
        f"run(load(Path({str(path)!r})))\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True)
