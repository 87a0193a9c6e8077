"""megatron-core's distributed optimizer around models of ckpt_megatron, its state known by name."""

import hashlib
from argparse import Namespace

import torch

from ckpt_megatron import build_chunks
from llm_ckpt.layout import Shard, cut
from llm_ckpt.params import expected_params

KINDS = ("param", "exp_avg", "exp_avg_sq")
STEP = 5.0


def full(kind, param):
    """A parameter's state, made from its name alone; its weight is its `param`."""
    seed = int.from_bytes(hashlib.sha256(f"{kind} {param.name}".encode()).digest()[:4], "little")
    return torch.randn(param.shape, generator=torch.Generator().manual_seed(seed))


def piece(kind, param, shard, shape):
    """What a rank holds of it; a vocabulary is padded with zero rows up to the rank's."""
    whole = full(kind, param)
    if param.cut.padded:
        rows = shape[0] * shard[1] - whole.shape[0]
        whole = torch.nn.functional.pad(whole, (0,) * (2 * whole.dim() - 1) + (rows,))
    return cut(whole, param.cut, Shard(*shard))


def build(arch, *, bucket=None, dtype=torch.float32, **layout):
    """This rank's wrapped chunks and its optimizer, with every state filled by name."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    from llm_train.train.optimizer import prepare_state

    chunks = [chunk.to(dtype) for chunk in build_chunks(arch.document(), **layout)]
    settings = DistributedDataParallelConfig(
        use_distributed_optimizer=True,
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=bucket is not None,
        bucket_size=bucket,
    )
    wrapped = [
        DistributedDataParallel(chunk.config, settings, chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(chunks)
    ]
    is_half = dtype is torch.bfloat16
    config = OptimizerConfig(
        lr=1e-3, use_distributed_optimizer=True, bf16=is_half, params_dtype=dtype
    )
    optimizer = get_megatron_optimizer(config, wrapped)
    prepare_state(optimizer)
    for part in parts_of(optimizer):
        for state in part.optimizer.state.values():
            state["step"].fill_(STEP)
    return chunks, optimizer


def parts_of(optimizer):
    """The distributed optimizers that have parameters."""
    return getattr(optimizer, "chained_optimizers", [optimizer])


def slices(arch, chunks, optimizer):
    """For each state of each parameter (or part of one) on this rank: kind, name, tensor, truth."""
    from llm_train.model.names import named_tensors

    params = {param.name: param for param in expected_params(arch)}
    named = {named.tensor: named for chunk in chunks for named in named_tensors(chunk)}
    for part in parts_of(optimizer):
        for parameter, (group, order) in part.model_param_group_index_map.items():
            one = named[parameter]
            span = part._get_model_param_range_map(parameter)["param"]
            main = part.optimizer.param_groups[group]["params"][order]
            state = {"param": main.data, **part.optimizer.state[main]}
            for kind in KINDS:
                truth = piece(kind, params[one.name], one.shard, tuple(parameter.shape))
                yield kind, one.name, state[kind], truth.flatten()[span.start : span.end]


def fill(arch, chunks, optimizer):
    """Make weights and states what `full` says."""
    from llm_train.model.names import named_tensors

    params = {param.name: param for param in expected_params(arch)}
    with torch.no_grad():
        for chunk in chunks:
            for named in named_tensors(chunk):
                shape = tuple(named.tensor.shape)
                named.tensor.copy_(piece("param", params[named.name], named.shard, shape))
        for _, _, tensor, truth in slices(arch, chunks, optimizer):
            tensor.copy_(truth)


def save_v1(folder, chunks, optimizer, args):
    """As Megatron-LM saves `torch` checkpoints: the weights once, the optimizer's state beside."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = ["model"] if len(chunks) == 1 else [f"model{i}" for i in range(len(chunks))]
    state = {key: chunk.state_dict() for key, chunk in zip(keys, chunks, strict=True)}
    torch.save(
        {
            "args": Namespace(consumed_train_samples=40, **args),
            "checkpoint_version": 3.0,
            "iteration": 7,
            "optimizer": optimizer.state_dict(),
            "opt_param_scheduler": {"max_lr": 1e-3, "num_steps": 40, "lr_decay_style": "cosine"},
            **state,
        },
        folder / "model_optim_rng.pt",
    )
    optimizer.save_parameter_state(str(folder / "distrib_optim.pt"))
