"""The one place where attributes of other libraries are replaced, by explicit calls, undoably.

megatron-core names `torch.cuda` throughout. On a CPU these names are mapped onto the CPU and the
holes of gloo are filled; on an NPU `torch_npu.contrib.transfer_to_npu` does the mapping. Nothing
here runs at import.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist

from llm_train.edge.write_results import WriteResults

CPU = torch.device("cpu")

_ABSENT = object()


class Patches:
    """Replaced attributes, remembered in order so that `undo` puts all of them back."""

    def __init__(self) -> None:
        self._saved: list[tuple[object, str, object]] = []

    def set(self, owner: object, name: str, value: object) -> None:
        """Replace `owner.name`."""
        self._saved.append((owner, name, getattr(owner, name, _ABSENT)))
        setattr(owner, name, value)

    def undo(self) -> None:
        """Put everything back, the newest first."""
        while self._saved:
            owner, name, value = self._saved.pop()
            if value is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


class _NoStream:
    """Stands for streams, events, contexts and handles where there is nothing to wait for."""

    def __init__(self, *_args: object, **_kwargs: object) -> None: ...

    def __enter__(self) -> "_NoStream":
        return self

    def __exit__(self, *_exc: object) -> bool:
        return False

    def record_event(self, *_args: object) -> "_NoStream":
        return self

    def wait(self, *_args: object, **_kwargs: object) -> None: ...

    wait_stream = wait_event = record = synchronize = wait

    def query(self) -> bool:
        return True

    def elapsed_time(self, _end: object) -> float:
        return 0.0


def patch_cpu(patches: Patches) -> None:
    """Map the `torch.cuda` names megatron-core uses onto the CPU, and fill gloo's holes."""
    _run_eagerly(patches)
    _map_cuda_module(patches)
    _map_tensor_methods(patches)
    _map_factories(patches)
    _map_random_state(patches)
    _fill_extension(patches)
    _fill_gloo(patches)
    _keep_to_oneself(patches)


def patch_npu(patches: Patches) -> None:
    """Map `torch.cuda` onto the NPU through torch_npu's own transfer, plus what it leaves out."""
    _run_eagerly(patches)
    import torch_npu  # pyright: ignore[reportMissingImports]  # only on NPU machines
    from torch_npu.contrib import (  # pyright: ignore[reportMissingImports]
        transfer_to_npu,  # noqa: F401  # importing it is how torch_npu switches it on
    )

    torch_npu.npu.init()
    patches.set(torch.cuda, "default_generators", torch_npu.npu.default_generators)
    _answer_cuda_type(patches, found="torch.npu.")


def patch_gaps(patches: Patches) -> None:
    """Define what megatron-core 0.16.1 takes for granted from Transformer Engine, on any device."""
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        # The router's fp32 gating looks the name up even when it is unused.
        patches.set(moe_utils, "te_general_gemm", None)
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    # In place of a manager process, which imports everything anew.
    patches.set(filesystem_async, "_get_write_results_queue", WriteResults)


def _is_cuda(device: object) -> bool:
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, torch.device) and device.type == "cuda"


def _nothing() -> Callable[..., None]:
    """A new function each time: torch._dynamo tells patched functions apart by identity."""
    return lambda *_args, **_kwargs: None


def _run_eagerly(patches: Patches) -> None:
    """megatron-core decorates small functions with torch.compile, which off CUDA would import
    dynamo (8 s) and call a C++ compiler for a minute in the first step.
    """

    def compile_nothing(model: Any = None, **_options: object) -> Any:
        return model if model is not None else (lambda function: function)

    patches.set(torch, "compile", compile_nothing)
    import megatron.core  # noqa: F401  # decorated now, while torch.compile does nothing

    # torch's optimizers import dynamo at their first call, only to step around it.
    for method in vars(torch.optim.Optimizer).values():
        if (function := getattr(method, "__wrapped__", None)) is not None:
            patches.set(function, "__dynamo_disable", function)
    plain_step = getattr(torch.optim.Adam.step, "__wrapped__", torch.optim.Adam.step)
    patches.set(torch.optim.Adam, "step", torch.no_grad()(plain_step))


def _itself(tensor: torch.Tensor, *_args: object, **_kwargs: object) -> torch.Tensor:
    return tensor


def _map_cuda_module(patches: Patches) -> None:
    stream = _NoStream()
    for name in ("set_device", "synchronize", "empty_cache", "set_stream"):
        patches.set(torch.cuda, name, _nothing())
    for name in ("current_stream", "default_stream", "stream"):
        patches.set(torch.cuda, name, lambda *_a, **_k: stream)
    for name in ("Stream", "Event"):
        patches.set(torch.cuda, name, _NoStream)
    # Every parameter and buffer is made with device=torch.cuda.current_device().
    patches.set(torch.cuda, "current_device", lambda: CPU)
    for name in ("range_push", "range_pop"):
        patches.set(torch.cuda.nvtx, name, _nothing())


def _map_tensor_methods(patches: Patches) -> None:
    patches.set(torch.Tensor, "cuda", _itself)
    patches.set(torch.nn.Module, "cuda", _itself)
    patches.set(torch.Tensor, "pin_memory", _itself)
    patches.set(torch.Tensor, "record_stream", _nothing())
    original_to = torch.Tensor.to

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and _is_cuda(args[0]):
            args = (CPU, *args[1:])
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        return original_to(self, *args, **kwargs)

    patches.set(torch.Tensor, "to", to)
    _answer_cuda_type(patches, found="torch.")


def _answer_cuda_type(patches: Patches, *, found: str) -> None:
    """`Tensor.type()` answers 'torch.cuda.FloatTensor': the optimizer compares with that text."""
    original = torch.Tensor.type

    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = original(self, *args, **kwargs)
        if args or kwargs or answer.startswith("torch.cuda."):
            return answer
        return answer.replace(found, "torch.cuda.", 1)

    patches.set(torch.Tensor, "type", type_)


def _map_factories(patches: Patches) -> None:
    """`device="cuda"` and `pin_memory=True` are written out in schedules, clipping and scaler."""

    def on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @functools.wraps(factory)
        def made(*args: Any, **kwargs: Any) -> torch.Tensor:
            if _is_cuda(kwargs.get("device")):
                kwargs["device"] = CPU
            if kwargs.get("pin_memory"):
                kwargs["pin_memory"] = False
            return factory(*args, **kwargs)

        return made

    for name in ("tensor", "zeros", "empty", "ones", "full", "arange"):
        patches.set(torch, name, on_cpu(getattr(torch, name)))


def _map_random_state(patches: Patches) -> None:
    from megatron.core.tensor_parallel import random as megatron_random

    def get_state(*_args: object, **_kwargs: object) -> torch.Tensor:
        return torch.get_rng_state()

    def set_state(state: torch.Tensor, *_args: object, **_kwargs: object) -> None:
        torch.set_rng_state(state)

    def manual_seed(seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    # One generator is the host's and the device's.
    patches.set(torch.cuda, "manual_seed", manual_seed)
    patches.set(torch.cuda, "get_rng_state", get_state)
    patches.set(torch.cuda, "set_rng_state", set_state)
    patches.set(megatron_random, "_get_cuda_rng_state", get_state)
    patches.set(megatron_random, "_set_cuda_rng_state", set_state)


def _fill_extension(patches: Patches) -> None:
    from megatron.core.tensor_parallel import layers

    from llm_train.train.weight_gradients import Products

    patches.set(layers, "fused_weight_gradient_mlp_cuda", Products)


def _fill_gloo(patches: Patches) -> None:
    original_all_to_all, original_all_gather = dist.all_to_all_single, dist.all_gather

    def whole_numbers(splits: Iterable[Any] | None) -> list[int] | None:
        return None if splits is None else [int(size) for size in splits]

    def all_to_all_single(
        output: torch.Tensor,
        tensor: torch.Tensor,
        output_split_sizes: Iterable[Any] | None = None,
        input_split_sizes: Iterable[Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        # megatron-core turns tensor-valued splits into numbers only for CUDA tensors.
        return original_all_to_all(
            output,
            tensor,
            whole_numbers(output_split_sizes),
            whole_numbers(input_split_sizes),
            **kwargs,
        )

    def all_gather(
        outputs: list[torch.Tensor], tensor: torch.Tensor, group: Any = None, async_op: bool = False
    ) -> Any:
        sizes = [out.shape[0] for out in outputs] if tensor.dim() else [0]
        if len(set(sizes)) == 1:
            return original_all_gather(outputs, tensor, group=group, async_op=async_op)
        # gloo gathers equal shapes only: pad to the longest, then cut.
        padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
        padded[: tensor.shape[0]] = tensor
        gathered = [torch.empty_like(padded) for _ in outputs]
        original_all_gather(gathered, padded, group=group)
        for out, piece, size in zip(outputs, gathered, sizes, strict=True):
            out.copy_(piece[:size])
        return None

    patches.set(dist, "all_to_all_single", all_to_all_single)
    patches.set(dist, "all_gather", all_gather)


def _keep_to_oneself(patches: Patches) -> None:
    """A lone data-parallel rank gathers and reduces its own buffers, and does it in this thread.

    gloo would copy them in a thread of its own. That thread's OpenMP pool is one more than there
    are cores, for which OpenMP lets all threads of the process sleep between operations instead of
    spin: every operation of a step becomes a tenth slower.
    """
    from megatron.core.distributed import param_and_grad_buffer as buffers

    coalesce = buffers._coalescing_manager

    def coalescing_manager(group: dist.ProcessGroup, **kwargs: Any) -> Any:
        return _NoStream() if group.size() == 1 else coalesce(group, **kwargs)

    def unless_alone(collective: Callable[..., Any]) -> Callable[..., Any]:
        def run(
            output: torch.Tensor, tensor: torch.Tensor, *, group: dist.ProcessGroup, **kwargs: Any
        ) -> Any:
            if group.size() > 1:
                return collective(output, tensor, group=group, **kwargs)
            if output.data_ptr() != tensor.data_ptr():
                output.copy_(tensor)
            return None

        return run

    patches.set(buffers, "_coalescing_manager", coalescing_manager)
    for name in ("dist_all_gather_func", "dist_reduce_scatter_func"):
        patches.set(buffers, name, unless_alone(getattr(buffers, name)))
