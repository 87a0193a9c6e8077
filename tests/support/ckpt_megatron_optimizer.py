"""megatron-core's distributed optimizer around models of ckpt_megatron, its state known by name."""

import hashlib
import json
from argparse import Namespace

import torch

from ckpt_megatron import build_chunks, held_pieces
from llm_ckpt.arch import parse_arch_text
from llm_ckpt.layout import Shard, cut
from llm_ckpt.params import expected_params

KINDS = ("param", "exp_avg", "exp_avg_sq")
STEP = 5.0


class Known:
    """One kind of state of every parameter, made from its name alone; a weight is its `param`."""

    def __init__(self, arch, kind):
        self.params = {param.name: param for param in expected_params(arch)}
        self.kind = kind

    def full(self, name):
        text = f"{self.kind} {name}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:4], "little")
        shape = self.params[name].shape
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def read(self, name, shard, *, padded_vocab_size=None):
        """What a rank holds of it, as a source gives it."""
        whole, how = self.full(name), self.params[name].cut
        if how.padded:
            rows = padded_vocab_size - whole.shape[0]
            whole = torch.nn.functional.pad(whole, (0,) * (2 * whole.dim() - 1) + (rows,))
        return cut(whole, how, Shard(*shard))


def build(arch, *, vocab, bucket=None, dtype=torch.float32, **layout):
    """This rank's wrapped chunks and its optimizer, with every state filled by name."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    from llm_train.train.optimizer import prepare_state

    chunks = [chunk.to(dtype) for chunk in build_chunks(arch.document(), vocab=vocab, **layout)]
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


def slices(arch, chunks, optimizer, *, vocab):
    """For each state of each parameter (or part of one) on this rank: its name, it, the truth."""
    for kind in KINDS:
        for chunk in chunks:
            parameters = dict(chunk.named_parameters())
            for name, _, truth in held_pieces(chunk, Known(arch, kind), padded=vocab):
                for part in parts_of(optimizer):
                    if (parameter := parameters.get(name)) in part.model_param_group_index_map:
                        span = part._get_model_param_range_map(parameter)["param"]
                        found = _state_of(part, parameter, kind)
                        yield f"{kind} {name}", found, truth.flatten()[span.start : span.end]


def _state_of(part, parameter, kind):
    group, order = part.model_param_group_index_map[parameter]
    main = part.optimizer.param_groups[group]["params"][order]
    return main.data if kind == "param" else part.optimizer.state[main][kind]


def fill(arch, chunks, optimizer, *, vocab):
    """Make weights and states what is known of them."""
    with torch.no_grad():
        for chunk in chunks:
            for _, tensor, truth in held_pieces(chunk, Known(arch, "param"), padded=vocab):
                tensor.copy_(truth)
        for _, tensor, truth in slices(arch, chunks, optimizer, vocab=vocab):
            tensor.copy_(truth)


def my_folder(root, *, iteration, pp=1, ep=1, **_):
    """The folder of this rank's files, as Megatron-LM names it."""
    from megatron.core import parallel_state as state

    name = f"mp_rank_{state.get_tensor_model_parallel_rank():02d}"
    name += f"_{state.get_pipeline_model_parallel_rank():03d}" if pp > 1 else ""
    name += f"_{state.get_expert_model_parallel_rank():03d}" if ep > 1 else ""
    return root / f"iter_{iteration:07d}" / name


def save_v1(folder, chunks, optimizer, args):
    """As Megatron-LM saves `torch` checkpoints; every rank calls this."""
    from megatron.core import parallel_state

    folder.mkdir(parents=True, exist_ok=True)
    if parallel_state.get_expert_data_parallel_rank() == 0:
        keys = ["model"] if len(chunks) == 1 else [f"model{i}" for i in range(len(chunks))]
        state = {key: chunk.state_dict() for key, chunk in zip(keys, chunks, strict=True)}
        value = {
            "args": Namespace(consumed_train_samples=40, **args),
            "checkpoint_version": 3.0,
            "iteration": 7,
            "optimizer": optimizer.state_dict(),
            "opt_param_scheduler": {"max_lr": 1e-3, "num_steps": 40, "lr_decay_style": "cosine"},
            **state,
        }
        torch.save(value, folder / "model_optim_rng.pt")
    optimizer.save_parameter_state(str(folder / "distrib_optim.pt"))


def tiny(golden_arch, *, tied=False):
    """An architecture whose sizes are no multiples of 64: every padding of the buffers shows."""
    document = golden_arch("qwen3_tiny") | {"vocab_size": 250, "tie_embeddings": tied}
    document["hidden_size"], document["mlp"]["ffn_hidden_size"] = 40, 100
    return parse_arch_text(json.dumps(document), where="test")


def finish(root, arch):
    """The files beside an iteration."""
    (root / "arch.json").write_text(arch.dumps())
    (root / "latest_checkpointed_iteration.txt").write_text("7")


def edit_torch_file(path, change):
    """Change what torch.save wrote."""
    value = torch.load(path, weights_only=False)
    torch.save(change(value) or value, path)
