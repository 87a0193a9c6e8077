"""The distributed optimizer's state in v1: megatron-core's is read, and it loads ours."""

import math
import random
from collections import Counter
from dataclasses import dataclass, replace
from itertools import accumulate

import pytest
import torch

import ckpt_megatron_optimizer as megatron
from ckpt_megatron import build_chunks
from ckpt_zoo import CASES
from fork_ranks import run_ranks
from llm_ckpt.edge.folder import arch_from_file
from llm_ckpt.errors import CheckpointError, LayoutError
from llm_ckpt.formats.optimizer_state import is_trained, split_state, state_name
from llm_ckpt.formats.param_buffer import BufferParam, in_registered_order, place
from llm_ckpt.params import expected_params
from llm_ckpt.source import open_source

PADDED = 256
BY_ID = {case.id: case for case in CASES}
# megatron-core has no biases of MLA's projections
BY_ID["latent"] = replace(
    BY_ID["deepseek_v3"], config={**BY_ID["deepseek_v3"].config, "attention_bias": False}
)


@pytest.fixture(scope="session")
def hf_case(tmp_path_factory):
    """The Hugging Face folder of a case of the zoo."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = BY_ID[name].save(tmp_path_factory.mktemp(name) / "hf")
        return made[name]

    return make


# Buffers


def test_parameters_lie_where_megatron_core_puts_them():
    random.seed(1)
    draws = [
        (
            [(random.choice((1, 32, 63, 64, 200, 640)), random.random() < 0.2) for _ in range(n)],
            random.choice((None, None, 100, 700)),
        )
        for n in [1, 2, *(random.randint(3, 12) for _ in range(60))]
    ]

    def rank(_rank):
        return [_places_of_megatron(params, bucket) for params, bucket in draws]

    for world_size in (1, 3):
        for found in run_ranks(rank, world_size):
            for (params, bucket), (starts, numel) in zip(draws, found, strict=True):
                placed = place([BufferParam(*one) for one in params], bucket_numel=bucket)
                assert (list(placed.starts), placed.numel) == (starts, numel)


def _places_of_megatron(params, bucket):
    """Of its buffer: where each parameter begins once the padding after buckets is dropped."""
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBuffer
    from megatron.core.process_groups_config import ProcessGroupCollection

    from llm_train.edge.patches import Patches, patch_cpu, patch_gaps

    if not dist.is_initialized():
        patches = Patches()
        patch_cpu(patches)
        patch_gaps(patches)
        dist.init_process_group("gloo")
        parallel_state.initialize_model_parallel()
    group = parallel_state.get_data_parallel_group()
    groups = ProcessGroupCollection()
    groups.tp, groups.dp_cp = parallel_state.get_tensor_model_parallel_group(), group
    tensors = [torch.nn.Parameter(torch.zeros(numel)) for numel, _ in params]
    for tensor, (_, is_shared) in zip(tensors, params, strict=True):
        tensor.shared_embedding = is_shared
    buffer = _ParamAndGradBuffer(
        DistributedDataParallelConfig(use_distributed_optimizer=True),
        torch.float32,
        torch.float32,
        tensors,
        group,
        bucket,
        {tensor: str(i) for i, tensor in enumerate(tensors)},
        1.0,
        list(range(len(tensors))),
        False,
        groups,
    )
    lengths = [bucket.numel_unpadded for bucket in buffer.buckets]
    ends = [0, *accumulate(lengths)]
    starts = []
    for tensor in tensors:
        start, _, bucket_id = buffer.param_index_map[tensor]
        starts.append(start - buffer.bucket_indices[bucket_id][0] + ends[bucket_id])
    return starts, buffer.numel_unpadded


# v1


@pytest.fixture
def arch_of(golden_arch, hf_case):
    """The architecture of a layout's model."""

    def make(name):
        if name.startswith("tiny"):
            return megatron.tiny(golden_arch, tied="tied" in name)
        return arch_from_file(hf_case(name) / "config.json")

    return make


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How megatron-core saves, and the sizes that are then written."""

    model: str
    sizes: dict
    ranks: int
    to: dict
    bucket: int | None = None
    dtype: torch.dtype = torch.float32
    vocab: int = 256


WIDE, EXPERTS = {"tp": 2, "pp": 2}, {"tp": 2, "ep": 2}
LAYOUTS = {
    "tp": Layout(model="tiny", sizes={"tp": 2}, ranks=2, to=WIDE),
    "pp": Layout(
        model="tiny-tied", sizes={"pp": 2}, ranks=2, to=WIDE, dtype=torch.bfloat16, vocab=250
    ),
    "vpp": Layout(model="tiny", sizes={"pp": 2, "vpp": 2}, ranks=2, to=WIDE),
    "dp": Layout(model="tiny", sizes={}, ranks=3, to={"pp": 2, "vpp": 2}),
    "buckets": Layout(model="tiny", sizes={}, ranks=2, to=WIDE, bucket=3000),
    "ep": Layout(model="qwen3_moe", sizes={"ep": 2}, ranks=2, to=EXPERTS),
    "etp": Layout(model="qwen2_moe", sizes={**EXPERTS, "etp": 1}, ranks=2, to={"ep": 2, "pp": 2}),
    "grouped": Layout(
        model="latent", sizes={"ep": 2, "is_grouped": True}, ranks=2, to={"tp": 2, "ep": 2}
    ),
    "latent": Layout(model="latent", sizes=EXPERTS, ranks=4, to={"ep": 2, "experts": "grouped"}),
    "prediction": Layout(
        model="deepseek_v3-prediction", sizes={"pp": 2, "ep": 2}, ranks=4, to={"ep": 2}
    ),
}


def saved_by_megatron(root, layout, arch):
    def rank(_rank):
        settings = {"bucket": layout.bucket, "dtype": layout.dtype, "vocab": layout.vocab}
        chunks, optimizer = megatron.build(arch, **settings, **layout.sizes)
        megatron.fill(arch, chunks, optimizer, vocab=layout.vocab)
        args = {"data_parallel_size": layout.ranks, "ddp_bucket_size": layout.bucket}
        folder = megatron.my_folder(root, iteration=7, **layout.sizes)
        megatron.save_v1(folder, chunks, optimizer, args)

    run_ranks(rank, layout.ranks)
    megatron.finish(root, arch)


def assert_states(root, arch, dtype):
    """Every state and every weight is what is known of it."""
    known = {kind: megatron.Known(arch, kind) for kind in megatron.KINDS}
    trained = [param.name for param in expected_params(arch) if is_trained(param.name)]
    with open_source(root) as source:
        assert source.consumed_samples == 40
        found = Counter(split_state(name) for name in source.optimizer.names())
        assert found == Counter((kind, name) for kind in known for name in trained)
        for kind, name in found:
            state = source.read(state_name(kind, name))
            assert torch.equal(state, known[kind].full(name)), (kind, name)
        for name in source.names():
            assert torch.equal(source.read(name), known["param"].full(name).to(dtype)), name


def loads_in_megatron(root, arch, dtype, sizes):
    sizes = dict(sizes)
    if "experts" in sizes:
        sizes["is_grouped"] = sizes.pop("experts") == "grouped"

    def rank(_rank):
        chunks, optimizer = megatron.build(arch, dtype=dtype, vocab=PADDED, **sizes)
        folder = megatron.my_folder(root, iteration=7, **sizes)
        file = torch.load(folder / "model_optim_rng.pt", weights_only=False)
        for part in megatron.parts_of(optimizer):
            for state in part.optimizer.state.values():
                state["step"].fill_(0.0)
        optimizer.load_state_dict(file["optimizer"])
        optimizer.load_parameter_state(str(folder / "distrib_optim.pt"))
        count = 0
        for name, tensor, truth in megatron.slices(arch, chunks, optimizer, vocab=PADDED):
            assert torch.equal(tensor, truth), name
            count += 1
        steps = {
            float(state["step"])
            for part in megatron.parts_of(optimizer)
            for state in part.optimizer.state.values()
        }
        return count, steps, file["opt_param_scheduler"]["num_steps"]

    ranks = math.prod(sizes.get(axis, 1) for axis in ("tp", "pp", "ep"))
    for count, steps, samples in run_ranks(rank, ranks):
        assert count > 20
        assert steps == {megatron.STEP}
        assert samples == 40


@pytest.mark.parametrize("name", LAYOUTS)
def test_v1_state_of_megatron_core_is_read_and_written_for_another_layout(
    name, arch_of, convert, tmp_path
):
    layout = LAYOUTS[name]
    arch, dtype = arch_of(layout.model), layout.dtype
    saved_by_megatron(tmp_path / "saved", layout, arch)
    assert_states(tmp_path / "saved", arch, dtype)
    convert(tmp_path / "saved", tmp_path / "v2", "v2")
    assert_states(tmp_path / "v2", arch, dtype)
    multiple = PADDED // layout.to.get("tp", 1)
    convert(tmp_path / "v2", tmp_path / "v1", "v1", **layout.to, vocab_multiple=multiple)
    assert_states(tmp_path / "v1", arch, dtype)
    loads_in_megatron(tmp_path / "v1", arch, dtype, layout.to)


def test_optimizers_of_experts_are_one_without_expert_parallel_ranks(arch_of, convert, tmp_path):
    arch, layout = arch_of("qwen3_moe"), LAYOUTS["ep"]
    saved_by_megatron(tmp_path / "saved", layout, arch)
    convert(tmp_path / "saved", tmp_path / "one", "v1", vocab_multiple=PADDED)
    loads_in_megatron(tmp_path / "one", arch, torch.float32, {})
    convert(tmp_path / "one", tmp_path / "two", "v1", **EXPERTS, vocab_multiple=128)
    assert_states(tmp_path / "two", arch, torch.float32)
    loads_in_megatron(tmp_path / "two", arch, torch.float32, EXPERTS)


@pytest.mark.parametrize("name", ["tiny", "qwen2_moe", "latent", "deepseek_v3-prediction"])
def test_modules_register_parameters_in_the_order_that_is_written(name, arch_of):
    arch = arch_of(name)

    def rank(_rank):
        (chunk,) = build_chunks(arch.document(), vocab=PADDED)
        return [name for name, _ in chunk.named_parameters()]

    (names,) = run_ranks(rank, 1)
    assert in_registered_order(reversed(names)) == names


def test_v1_state_of_an_unknown_module_is_refused():
    with pytest.raises(LayoutError, match=r"mixer\.D.*--layout v2 or --no-optimizer"):
        in_registered_order(["decoder.layers.0.mixer.D"])


def test_v1_state_that_cannot_be_placed_is_refused(golden_arch, convert, tmp_path):
    arch = megatron.tiny(golden_arch)
    saved_by_megatron(tmp_path / "saved", LAYOUTS["tp"], arch)
    path = tmp_path / "saved/iter_0000007/mp_rank_00/distrib_optim.pt"
    kept = path.read_bytes()

    def shorter(value):
        (buffer,) = value[0].values()
        buffer["numel_unpadded"] -= 64

    def old(value):
        del value["buckets_coalesced"]

    def another(value):
        value[1] = value[0]

    for change, message in (
        (
            shorter,
            r"distrib_optim\.pt: a buffer of .* numel_unpadded \d+, want \d+;.*--no-optimizer",
        ),
        (old, "before February 2024"),
        (another, r"2 buffers, want 1 .*frozen"),
    ):
        path.write_bytes(kept)
        megatron.edit_torch_file(path, change)
        with pytest.raises(CheckpointError, match=message):
            convert(tmp_path / "saved", tmp_path / "v2", "v2")
    for path in (tmp_path / "saved").rglob("distrib_optim.pt"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"in the ranks' own files; want .*distrib_optim\.pt"):
        convert(tmp_path / "saved", tmp_path / "v2", "v2")
    convert(tmp_path / "saved", tmp_path / "v2", "v2", keeps_optimizer=False)
    with open_source(tmp_path / "v2") as source:
        assert source.optimizer is None
