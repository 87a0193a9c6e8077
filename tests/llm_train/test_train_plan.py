"""What `llm-train plan` says before a run is what the run then has."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from ckpt_zoo import CASES
from fork_ranks import run_ranks
from llm_train import cli
from llm_train.arch import parse
from llm_train.config import ParallelConfig, RecomputeConfig, RunConfig
from llm_train.plan import bubble, make_plan
from llm_train.plan.activations import head_bytes, layers_bytes, logits_bytes, prediction_bytes
from llm_train.plan.layers import each_layer
from llm_train.plan.memory import chunks_in_flight
from llm_train.plan.parameters import stage_parameters
from llm_train.plan.shapes import Shapes
from mixer_archs import delta_net, state_space
from tiny_archs import LATENT

GOLDEN = Path(__file__).parents[1] / "contracts" / "arch" / "golden"
BY_ID = {case.id: case for case in CASES}
# Norms of one and two vectors, learned positions, biases, sandwiches, latent attention, experts.
MODELS = (
    "llama",
    "gpt2",
    "gemma2",
    "qwen3_moe",
    "deepseek_v2-lite",
    "qwen3_next",
    "bamba-biases",
    "deepseek_v3-prediction",
    "glm_moe_dsa-borrowing",
    "longcat_flash",
    "hunyuan-large",
    "gpt_oss",
    "phimoe",
    "bloom",
)


def golden(name, **changes):
    document = json.loads((GOLDEN / f"{name}.json").read_text())
    for key, value in changes.items():
        section, _, field = key.partition("__")
        if field:
            document[section][field] = value
        else:
            document[section] = value
    return parse(document, where="test")


def mixed(make, **options):
    document = json.loads((GOLDEN / "qwen3_tiny.json").read_text())
    return parse(make(document, **options), where="test")


def run_config(**sections):
    document = {
        "model": {"arch": "a.json"},
        "data": {"train": ["d"]},
        "train": {"max_steps": 1, "seq_length": 32, "global_batch_size": 8},
        "optimizer": {"lr": 1e-3},
        "save": {"path": "run"},
        "device": "cpu",
    }
    for name, section in sections.items():
        document[name] = {**document.get(name, {}), **section}
    return RunConfig.model_validate(document)


def built_counts(arch, layouts):
    """Parameters by name on every rank of the models that llm-train builds, two ranks each."""

    def rank(_rank):
        import torch

        from llm_train.edge.device import DeviceKind, device_session
        from llm_train.edge.groups import model_parallel

        found = []
        with device_session(DeviceKind.CPU):
            from llm_train.model.build import build_chunks, transformer_config
            from llm_train.model.names import named_tensors

            for parallel in layouts:
                with model_parallel(parallel, seed=1):
                    config = transformer_config(arch, parallel, dtype=torch.float32)
                    every = [one for c in build_chunks(arch, config) for one in named_tensors(c)]
                    parameters = (
                        one for one in every if isinstance(one.tensor, torch.nn.Parameter)
                    )
                    found.append({one.name: one.tensor.numel() for one in parameters})
        return found

    return run_ranks(rank, 2)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_every_rank_are_those_of_the_built_model(name, tmp_path):
    from llm_train.weights import arch_of, open_source

    folder = BY_ID[name].save(tmp_path / "hf")
    arch = arch_of(open_source(folder), where=folder)
    first = arch.num_layers // 4 * 2  # layers that share something stay together
    layouts = [
        ParallelConfig(tp=2),
        ParallelConfig(pp=2, layers_per_stage=(first, arch.num_layers - first)),
        *([ParallelConfig(ep=2)] if arch.moe is not None else []),
    ]
    found = built_counts(arch, layouts)
    for index, parallel in enumerate(layouts):
        rows = -(-arch.vocab_size // parallel.tp) * parallel.tp
        held = stage_parameters(arch, parallel, vocab_rows=rows)
        for rank in (0, 1):
            stage = held[rank if parallel.pp == 2 else 0]
            built = found[rank][index]
            assert {name for one in stage for name in one.names} >= built.keys()
            assert sum(one.local for one in stage) == sum(built.values()), (parallel, rank)
            for one in stage:
                assert sum(built.get(name, 0) for name in one.names) == one.local, one.names


def allocated(document):
    """Bytes of weights, gradients and optimizer state, on each of two data-parallel ranks."""

    def rank(_rank):
        from llm_train.config_parse import parse as parse_config
        from llm_train.edge.arch_facts import read_arch
        from llm_train.edge.device import DeviceKind, device_session
        from llm_train.edge.groups import model_parallel

        config = parse_config(document, [], "test")
        with (
            device_session(DeviceKind.CPU) as device,
            model_parallel(config.parallel, seed=1),
        ):
            from llm_train.train.bench import NoCheckpoints
            from llm_train.train.training import Training

            training = Training(
                config,
                read_arch(config.model),
                source=None,
                store=NoCheckpoints(),
                device=device,
            )
            training.trainable.optimizer.step()
            weights = [p for chunk in training.chunks for p in chunk.parameters()]
            own = {p.untyped_storage().data_ptr() for p in weights}
            state = 0
            for part in training.trainable.optimizer.chained_optimizers:
                for main, moments in part.optimizer.state.items():
                    tensors = [value for key, value in moments.items() if key != "step"]
                    if main.untyped_storage().data_ptr() not in own:
                        tensors.append(main)
                    state += sum(one.nbytes for one in tensors)
            return (
                sum(p.nbytes for p in weights),
                sum(p.main_grad.nbytes for p in weights if p.requires_grad),
                state,
            )

    return run_ranks(rank, 2)


@pytest.mark.parametrize(
    ("precision", "distributed", "frozen"),
    [
        ("bf16", True, []),
        ("fp32", False, []),
        ("fp32", False, ["embedding.*", "*.local_experts.[0-2].linear_fc1.*", "*norm*"]),
    ],
)
def test_memory_of_weights_gradients_and_optimizer_is_what_two_ranks_allocate(
    precision, distributed, frozen, run_document, moe_arch
):
    run_document["optimizer"]["frozen"] = frozen
    run_document["model"]["arch"] = str(moe_arch)
    run_document["train"]["precision"] = precision
    run_document["train"]["micro_batch_size"] = 2
    run_document["optimizer"]["distributed"] = distributed
    found = allocated(run_document)
    arch = parse(json.loads(moe_arch.read_text()), where="test")
    plan = make_plan(RunConfig.model_validate(run_document), arch, 2)
    (memory,) = plan.memory
    assert (plan.trained_parameters < plan.total_parameters) == bool(frozen)
    for weights, gradients, _ in found:
        assert (memory.weights, memory.gradients) == (weights, gradients)
    # The distributed optimizer cuts its buffer in the middle, wherever a parameter ends.
    assert 2 * memory.optimizer == sum(state for _, _, state in found)


def saved_bytes(arch, recompute, dtype, parallel=None):
    """Distinct storages, weights aside, that autograd keeps in a forward of 2 x 32 tokens."""
    parallel = parallel or ParallelConfig()

    def rank(_rank):
        import torch

        from llm_train.edge.device import DeviceKind, device_session
        from llm_train.edge.groups import model_parallel

        with device_session(DeviceKind.CPU), model_parallel(parallel, seed=1):
            from llm_train.model.build import build_chunks, transformer_config
            from llm_train.model.mtp import Ahead

            found = []
            for one in recompute:
                config = transformer_config(
                    arch, parallel, dtype=getattr(torch, dtype), recompute=one
                )
                (model,) = build_chunks(arch, config)
                weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
                kept = {}

                def keep(tensor, weights=weights, kept=kept):
                    storage = tensor.untyped_storage()
                    if storage.data_ptr() not in weights:
                        kept[storage.data_ptr()] = storage
                    return tensor

                tokens = torch.randint(0, 200, (2, 32 // parallel.cp))
                positions = torch.arange(tokens.shape[1])[None].expand(2, -1)
                further = Ahead(tokens=tokens.clone(), position_ids=positions, labels=tokens)
                ahead = [further] * (arch.mtp.layers if arch.mtp else 0)
                with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                    loss = model.train()(tokens, positions, None, labels=tokens, ahead=ahead)
                # A storage whose bytes were dropped until backward needs them is empty.
                found.append(sum(storage.nbytes() for storage in kept.values()))
                del loss
            return found

    return run_ranks(rank, parallel.cp)[0]


RECOMPUTED = [
    {},
    {"kind": "selective", "modules": ["layernorm", "activation"]},
    {"kind": "selective", "modules": ["mlp"]},
    {"kind": "selective", "modules": ["core_attention"]},
    {"kind": "full"},
    {"kind": "full", "method": "block", "layers": 2},
]
LATENT_LAYERS = [
    {"count": 3, "mixer": "mla", "feed_forward": "dense", "window": None, "rope": True}
]
ACTIVATION_MODELS = {
    "latent": (golden("qwen3_tiny", attention=None, mla=LATENT, layers=LATENT_LAYERS), "float32"),
    "plain": (golden("llama_tiny"), "float32"),
    "head-norms": (golden("qwen3_tiny"), "bfloat16"),
    "softcap": (golden("llama_tiny", attention__softcap=5.0), "float32"),
    "prediction": (golden("qwen3_tiny", mtp={"layers": 2}), "float32"),
    "shared-keys": (golden("llama_tiny", attention__shared_kv=2), "float32"),
    "delta-net": (mixed(delta_net, has_experts=False), "float32"),
    "delta-net-bf16": (mixed(delta_net, has_experts=False), "bfloat16"),
    "state-space": (mixed(state_space), "float32"),
    "state-space-bf16": (mixed(state_space), "bfloat16"),
}


SHAPES = Shapes(
    tokens=64, seq_length=32, tp=1, is_sequence_parallel=False, width=4, has_kernels=False
)


@pytest.mark.parametrize("name", ACTIVATION_MODELS)
def test_activations_are_what_autograd_keeps_to_five_in_a_hundred(name):
    arch, dtype = ACTIVATION_MODELS[name]
    shapes = replace(SHAPES, width=4 if dtype == "float32" else 2)
    recompute = [RecomputeConfig.model_validate(one) for one in RECOMPUTED]
    for one, found in zip(recompute, saved_bytes(arch, recompute, dtype), strict=True):
        ends = head_bytes(arch, shapes, vocab_rows=arch.vocab_size)
        if arch.mtp:
            ends += prediction_bytes(arch, shapes, one)
            ends += arch.mtp.layers * logits_bytes(shapes, vocab_rows=arch.vocab_size)
        planned = layers_bytes(arch, each_layer(arch), shapes, one) + ends
        assert planned == pytest.approx(found, rel=0.05), one


@pytest.mark.parametrize(("kind", "exchange"), [("ring", None), ("ulysses", 1), ("allgather", 2)])
@pytest.mark.parametrize("name", ["plain", "latent"])
def test_what_came_from_other_ranks_is_kept(name, kind, exchange):
    parallel = ParallelConfig.model_validate({"cp": 2, "cp_kind": kind})
    arch, none = ACTIVATION_MODELS[name][0], RecomputeConfig()
    shapes = replace(SHAPES, tokens=32, cp=2, exchange=exchange)
    (found,) = saved_bytes(arch, [none], "float32", parallel)
    planned = layers_bytes(arch, each_layer(arch), shapes, none)
    planned += head_bytes(arch, shapes, vocab_rows=arch.vocab_size)
    assert planned == pytest.approx(found, rel=0.05)


def test_bubble_and_micro_batches_in_flight_are_those_of_the_schedules():
    """arXiv 2104.04473: (p - 1) / m of the ideal time is lost, (p - 1) / (v m) interleaved."""
    assert bubble(4, 1, 8) == pytest.approx(3 / 11)
    assert bubble(4, 2, 8) == pytest.approx(3 / 19)
    assert bubble(1, 1, 8) == 0
    plain = run_config(parallel={"pp": 4})
    assert [chunks_in_flight(plain, 8, stage) for stage in range(4)] == [4, 3, 2, 1]
    assert chunks_in_flight(plain, 2, 0) == 2
    virtual = run_config(parallel={"pp": 2, "vpp": 2})
    assert [chunks_in_flight(virtual, 8, stage) for stage in range(2)] == [5, 3]


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model: {{arch: {GOLDEN / 'llama_tiny.json'}}}\n"
        "data: {train: [missing]}\n"
        "train: {max_steps: 10, seq_length: 32, global_batch_size: 8}\n"
        "optimizer: {lr: 1e-3}\n"
        f"save: {{path: {tmp_path / 'out'}}}\n"
    )
    return path


def invoke(*words):
    return CliRunner().invoke(cli.main, ["plan", *map(str, words)])


def test_the_picture_shows_stages_chunks_noops_and_both_ends(config_file):
    result = invoke(
        config_file, "parallel.pp=2", "parallel.vpp=2", "parallel.noop_layers=[1,2,6,7]"
    )
    assert result.exit_code == 0
    assert result.output.splitlines()[1:4] == [
        "  stage   chunk 0   chunk 1",
        "  0       E 0 .     2-3",
        "  1       . 1       . . H",
    ]
    assert "pipeline bubble: 5.9% of a step" in result.output


def test_json_holds_the_numbers_of_the_tables(config_file):
    """Embedding and head 256 x 64; a layer 64 x (64 + 64) + 64 x 64 + 3 x 64 x 128 + 2 x 64."""
    found = json.loads(invoke(config_file, "parallel.pp=2", "--json").output)
    layer = 64 * 128 + 64 * 64 + 3 * 64 * 128 + 2 * 64
    assert found["parameters"] == 2 * 256 * 64 + 4 * layer + 64
    assert [sum(stage["parameters"].values()) for stage in found["stages"]] == [
        256 * 64 + 2 * layer,
        256 * 64 + 2 * layer + 64,
    ]
    assert found["stages"][0]["memory_bytes"]["weights"] == 4 * (256 * 64 + 2 * layer)
    # 6 operations a weight, and 12 · layers · width · (T + 1) / 2 keys for attention.
    weights = found["parameters"] - 256 * 64 - 64 - 4 * 2 * 64
    assert found["flops_per_token"] == 6 * weights + 12 * 4 * 64 * 33 / 2
    assert found["flops_per_step"] == found["flops_per_token"] * 8 * 32


def test_a_layout_that_cannot_be_is_refused_with_its_equation(config_file):
    result = invoke(config_file, "parallel.pp=2", "parallel.layers_per_stage=[3,2]")
    assert result.exit_code == 1
    assert "layers_per_stage: 3 + 2 = 5, want layers(4) + noop_layers(0) = 4" in result.output


def test_plan_loads_no_torch_and_takes_little_time(config_file):
    code = (
        "import sys; from llm_train.cli import main; main(sys.argv[1:], standalone_mode=False); "
        "assert 'torch' not in sys.modules, 'torch was loaded'"
    )
    command = [sys.executable, "-c", code, "plan", str(config_file)]
    before = os.times()
    subprocess.run(command, check=True, capture_output=True)
    after = os.times()
    # Time on a core, not on the wall: other tests run beside this one.
    assert after.children_user - before.children_user <= 1.5
