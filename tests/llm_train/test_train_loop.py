"""The loop around the steps: batches that grow, checkpoints beside it, signals, NaN, failures."""

import copy
import json
import os
import resource
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fork_ranks import RankError, run_ranks
from llm_train.edge import checkpoint_files


def run_here(document):
    from llm_train.config_parse import parse
    from llm_train.edge.run import run

    run(parse(document, [], "test"))


def train(document, world_size=1, before=lambda _rank: None):
    """The steps in metrics.jsonl after a run; `before(rank)` is called in each rank first."""

    def rank(index):
        before(index)
        run_here(document)

    run_ranks(rank, world_size)
    return steps_of(document)


def steps_of(document):
    path = root_of(document) / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [record for record in records if "loss" in record]


def root_of(document):
    return Path(document["save"]["path"])


def losses(steps):
    return {one["step"]: one["loss"] for one in steps}


def changed(document, tmp_path, name, **changes):
    """The document with `section__key` changed, in a run folder of its own."""
    found = copy.deepcopy(document)
    for key, value in changes.items():
        section, _, field = key.partition("__")
        found.setdefault(section, {})[field] = value
    found["save"]["path"] = str(tmp_path / name)
    return found


def forget_after(document, step):
    """Remove the checkpoints after `step`, as if the run had been killed then."""
    for iteration in checkpoint_files.finished_iterations(root_of(document)):
        if iteration > step:
            folder = checkpoint_files.iteration_folder(root_of(document), iteration)
            folder.rename(folder.with_name(f".saving_{iteration:07d}"))


@pytest.fixture(scope="module")
def tiny(toy_prefix, tmp_path_factory):
    """A run of 20 steps of a model of two layers, as a document."""
    golden = Path(__file__).parents[1] / "contracts" / "arch" / "golden" / "qwen3_tiny.json"
    arch = json.loads(golden.read_text())
    arch["layers"][0]["count"] = 2
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "arch.json").write_text(json.dumps(arch))
    return {
        "model": {"arch": str(folder / "arch.json"), "init_std": 0.1},
        "data": {"train": [str(toy_prefix)]},
        "train": {
            "max_steps": 20,
            "seq_length": 32,
            "global_batch_size": 4,
            "micro_batch_size": 2,
        },
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        "save": {"path": str(folder / "run")},
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def whole(tiny):
    """What the run of `tiny` gives when nothing disturbs it."""
    return train(tiny)


def test_a_step_tells_what_it_took(tiny, whole):
    last = whole[-1]
    assert last["consumed_tokens"] == 20 * 4 * 32
    assert last["mfu"] is None  # no peak of a CPU is known
    assert last["memory_bytes"] > 50 << 20  # torch alone is more
    assert whole[0]["eta_s"] > 0
    assert last["eta_s"] == 0


RAMP = {"start": 4, "increment": 4, "samples": 60}
# Worked out by hand: n = 2 growths, one each 30 samples, 12 sequences once more than 60 are taken.
RAMP_SIZES = [4] * 8 + [8] * 4 + [12] * 8


def test_a_growing_batch_resumes_exactly_and_trains_alike_on_two_ranks(tiny, tmp_path):
    document = changed(
        tiny, tmp_path, "ramp", train__batch_ramp=RAMP, train__global_batch_size=12, save__every=10
    )
    found = train(document)
    taken = [one["consumed_samples"] for one in found]
    assert np.diff([0, *taken]).tolist() == RAMP_SIZES
    assert [one["consumed_tokens"] for one in found] == [32 * n for n in taken]
    forget_after(document, 10)
    assert losses(train(document)) == losses(found)
    two = changed(document, tmp_path, "two", save__every=None)
    assert losses(train(two, 2)) == pytest.approx(losses(found), abs=1e-5)


def test_a_deterministic_run_repeats_itself_and_refuses_what_does_not(tiny, tmp_path):
    import torch

    def rank(document):
        run_here(document)
        return torch.are_deterministic_algorithms_enabled()

    documents = [
        changed(tiny, tmp_path, name, train__deterministic=True) for name in ("one", "two")
    ]
    for document in documents:
        # Switched off again when the run is over.
        assert run_ranks(lambda _, document=document: rank(document), 1) == [False]
    assert losses(steps_of(documents[0])) == losses(steps_of(documents[1]))
    files = [sorted(root_of(one).glob("iter_*/*.distcp")) for one in documents]
    assert [one.read_bytes() for one in files[0]] == [two.read_bytes() for two in files[1]]

    def refuse(_rank):
        from llm_train.edge.device import DeviceKind, device_session

        with device_session(DeviceKind.CPU, is_deterministic=True):
            torch.zeros(4).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))

    with pytest.raises(RankError, match="does not have a deterministic implementation"):
        run_ranks(refuse, 1)


def test_a_checkpoint_written_in_the_background_is_that_of_its_step(tiny, whole, tmp_path):
    """Training has gone on meanwhile: a writer that read the weights late would show it."""
    document = changed(
        tiny, tmp_path, "background", save__every=6, save__background=True, save__keep=3
    )
    train(document)
    root = root_of(document)
    assert checkpoint_files.finished_iterations(root) == [12, 18, 20]
    assert not list(root.glob(".saving_*"))
    folder = checkpoint_files.iteration_folder(root, 12)
    facts = checkpoint_files.read_description(folder).files
    names = {path.name for path in folder.iterdir()} - {checkpoint_files.DESCRIPTION}
    assert names == facts.keys()
    assert not [name for name, one in facts.items() if checkpoint_files.damage(folder, name, one)]
    forget_after(document, 12)
    assert losses(train(document)) == losses(whole)


@pytest.mark.parametrize("background", [False, True])
def test_a_save_that_fails_is_told_and_the_next_tries_again(
    tiny, whole, tmp_path, background, capfd
):
    document = changed(
        tiny, tmp_path, "obstacle", save__every=10, save__background=background, train__log_every=99
    )
    root = root_of(document)
    root.mkdir()
    (root / "iter_0000010").write_text("in the way")  # rank 0 alone cannot rename
    found = train(document, 2)
    assert losses(found) == pytest.approx(losses(whole), abs=1e-5)
    assert "WARNING: the checkpoint of step 10 could NOT be saved: rank 0: " in (
        capfd.readouterr().err
    )
    assert checkpoint_files.finished_iterations(root) == [20]
    assert not list(root.glob(".saving_*"))


@pytest.mark.parametrize("background", [False, True])
def test_only_a_last_save_that_fails_is_an_error(tiny, whole, tmp_path, background):
    """Files may not grow beyond 64 KiB: the writers meet it, in processes of their own."""
    document = changed(tiny, tmp_path, "full", save__every=10, save__background=background)

    def limit(_rank):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))

    with pytest.raises(
        RankError, match=r"the checkpoint of step 20 could NOT be saved: .* GiB are free"
    ):
        train(document, 1, before=limit)
    assert losses(steps_of(document)) == losses(whole)
    root = root_of(document)
    assert not list(root.glob("iter_*"))
    assert not list(root.glob(".saving_*"))


def signal_after(document, step, number):
    """Send this process a signal once `step` is in the metrics of the run."""
    path = root_of(document) / "metrics.jsonl"

    def watch():
        while not path.exists() or len(path.read_text().splitlines()) < step:
            time.sleep(0.001)
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, daemon=True).start()


@pytest.mark.parametrize(
    ("number", "world_size"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 2)], ids=["term", "usr1-2"]
)
def test_a_signal_ends_the_run_with_a_checkpoint_to_go_on_from(
    tiny, whole, tmp_path, number, world_size, capfd
):
    """On two ranks only the second gets it, and both end after the same step."""
    document = changed(tiny, tmp_path, "asked", train__log_every=99)

    def before(rank):
        if rank == world_size - 1:
            signal_after(document, 3, number)

    stopped = train(document, world_size, before)
    last = stopped[-1]["step"]
    assert 3 <= last < 20
    assert checkpoint_files.finished_iterations(root_of(document)) == [last]
    name = signal.Signals(number).name
    assert f"stopping after step {last} of 20: {name}" in capfd.readouterr().err
    resumed = losses(train(document, world_size))
    if world_size == 1:
        assert resumed == losses(whole)
    else:
        assert resumed == pytest.approx(losses(whole), abs=1e-5)


def test_checkpoints_are_written_when_their_time_has_come(tiny, tmp_path):
    """Rank 0's clock is the one that counts; both write."""
    document = changed(tiny, tmp_path, "clock", save__seconds=1e-9, train__max_steps=3)
    train(document, 2)
    assert checkpoint_files.finished_iterations(root_of(document)) == [1, 2, 3]
    late = changed(tiny, tmp_path, "late", save__seconds=1e9, train__max_steps=3)
    train(late)
    assert checkpoint_files.finished_iterations(root_of(late)) == [3]


def test_the_loss_scale_and_skipped_steps_survive_a_resume(tiny, tmp_path):
    """A step of fp16 that overflows moves neither the schedule nor Adam, but halves the scale."""
    document = changed(
        tiny,
        tmp_path,
        "fp16",
        train__precision="fp16",
        train__max_steps=9,
        save__every=6,
        optimizer__lr=3e-3,
    )
    document["model"]["init_std"] = 1.5
    found = train(document)
    assert any(one.get("skipped") for one in found[:6])
    assert not all(one.get("skipped") for one in found[:6])
    forget_after(document, 6)
    again = train(document)
    assert losses(again) == losses(found)
    assert [one["lr"] for one in again] == [one["lr"] for one in found]


QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "attention_bias": False,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """A model whose embedding of token 255 is NaN, and data with one such token, in document 7."""
    import safetensors.torch
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    folder = tmp_path_factory.mktemp("poisoned")
    torch.manual_seed(0)
    (folder / "hf").mkdir()
    (folder / "hf/config.json").write_text(json.dumps(QWEN3))
    shapes = {
        "model.embed_tokens.weight": (256, 32),
        "model.layers.0.input_layernorm.weight": (32,),
        "model.layers.0.self_attn.q_proj.weight": (32, 32),
        "model.layers.0.self_attn.k_proj.weight": (16, 32),
        "model.layers.0.self_attn.v_proj.weight": (16, 32),
        "model.layers.0.self_attn.o_proj.weight": (32, 32),
        "model.layers.0.self_attn.q_norm.weight": (16,),
        "model.layers.0.self_attn.k_norm.weight": (16,),
        "model.layers.0.post_attention_layernorm.weight": (32,),
        "model.layers.0.mlp.gate_proj.weight": (48, 32),
        "model.layers.0.mlp.up_proj.weight": (48, 32),
        "model.layers.0.mlp.down_proj.weight": (32, 48),
        "model.norm.weight": (32,),
        "lm_head.weight": (256, 32),
    }
    weights = {name: torch.randn(shape) * 0.1 for name, shape in shapes.items()}
    weights["model.embed_tokens.weight"][255] = torch.nan
    safetensors.torch.save_file(weights, folder / "hf/model.safetensors")
    builder = IndexedDatasetBuilder(f"{folder}/data.bin", dtype=np.uint16)
    random = np.random.RandomState(0)
    for number in range(12):
        tokens = random.randint(0, 250, 200)
        if number == 7:
            tokens[100] = 255
        builder.add_document(torch.from_numpy(tokens.astype(np.uint16)), [200])
    builder.finalize(f"{folder}/data.idx")
    return {
        "model": {"load": str(folder / "hf")},
        "data": {"train": [str(folder / "data")]},
        # 12 · 200 tokens are 74 samples of 32: one epoch and no more.
        "train": {"max_steps": 9, "seq_length": 32, "global_batch_size": 8, "micro_batch_size": 2},
        "optimizer": {"lr": 1e-3},
        "save": {"path": str(folder / "run")},
        "device": "cpu",
    }


def place_of_the_poison(document):
    """The number of the sample that holds token 255, read through megatron-core's own dataset."""
    from llm_train.config_parse import parse
    from llm_train.edge.token_dataset import read_facts
    from llm_train.train.data import build_splits

    config = parse(document, [], "test")

    def rank(_rank):
        from llm_train.edge.device import DeviceKind, device_session

        with device_session(DeviceKind.CPU):
            samples = build_splits(
                config.data,
                config.train,
                facts=[read_facts(config.data.train[0])],
                vocab_size=256,
                cache_dir=config.save.path / "data_cache",
            ).train
            return [n for n in range(72) if 255 in samples[n]["tokens"]]

    (found,) = run_ranks(rank, 1)[0]
    return found


def test_a_loss_that_is_nan_ends_the_run_with_its_sample_and_the_checkpoint_before(
    poisoned, tmp_path
):
    document = changed(poisoned, tmp_path, "stop", save__every=2)
    sample = place_of_the_poison(document)
    step, rank = sample // 8 + 1, sample % 4 // 2
    saved = (step - 1) // 2 * 2
    assert saved > 0
    with pytest.raises(RankError) as caught:
        train(document, 2)
    pair = sample - sample % 2
    root, prefix = root_of(document), document["data"]["train"][0]
    text = str(caught.value)
    assert (
        f"NotFiniteError: step {step}: the loss is nan on rank {rank}, in samples {pair} " in text
    )
    assert f"{sample} (document 7 of {prefix})" in text
    newest = checkpoint_files.iteration_folder(root, saved)
    assert f"the newest checkpoint is {newest}, of step {saved}" in text
    assert checkpoint_files.finished_iterations(root)[-1] == saved
    assert steps_of(document)[-1]["loss"] == "nan"


def test_a_step_whose_loss_is_nan_can_be_skipped(poisoned, tmp_path):
    document = changed(poisoned, tmp_path, "skip", train__on_nan="skip")
    sample = place_of_the_poison(document)
    found = train(document)
    skipped = [one["step"] for one in found if one.get("skipped")]
    assert skipped == [sample // 8 + 1]
    assert all(isinstance(one["loss"], float) for one in found if one["step"] not in skipped)


def test_a_gradient_that_is_not_finite_changes_no_weight(tiny, tmp_path):
    """megatron-core's own optimizer, given such a gradient, makes every weight NaN."""
    document = changed(tiny, tmp_path, "gradient", optimizer__warmup_steps=0)

    def rank(_rank):
        import torch

        from llm_train.arch import parse as parse_arch
        from llm_train.config_parse import parse
        from llm_train.edge.device import DeviceKind, device_session
        from llm_train.edge.groups import model_parallel
        from llm_train.train.bench import NoCheckpoints
        from llm_train.train.training import Training

        config = parse(document, [], "test")
        arch = parse_arch(json.loads(Path(document["model"]["arch"]).read_text()), where="test")
        with device_session(DeviceKind.CPU) as device, model_parallel(config.parallel, seed=1):
            training = Training(config, arch, source=None, store=NoCheckpoints(), device=device)
            parameters = list(training.trainable.chunks[0].parameters())
            before = [one.detach().clone() for one in parameters]
            for one in parameters:
                one.main_grad.fill_(1.0)
            parameters[0].main_grad.view(-1)[3] = float("inf")
            answer = training.trainable.optimizer.step()[:2]
            same = all(map(torch.equal, before, parameters))
            parameters[0].main_grad.fill_(1.0)
            later = training.trainable.optimizer.step()[0]
            return answer, same, later, all(map(torch.equal, before, parameters))

    assert run_ranks(rank, 1) == [((False, float("inf")), True, True, False)]


def test_a_rank_that_hangs_ends_the_others_within_the_timeout(tiny, tmp_path):
    document = changed(tiny, tmp_path, "hang", train__timeout_s=3)

    def before(rank):
        if rank == 1:
            signal_after(document, 2, signal.SIGSTOP)

    started_s = time.monotonic()
    with pytest.raises(RankError, match=r"[Tt]imed out"):
        train(document, 2, before)
    assert time.monotonic() - started_s < 60  # 600 by default


def test_bench_times_random_tokens_and_leaves_nothing_behind(tiny, tmp_path):
    from llm_train.flops import training_flops

    document = changed(tiny, tmp_path, "bench", data__train=["none/such"])

    def rank(_rank):
        from llm_train.arch import parse as parse_arch
        from llm_train.config_parse import parse
        from llm_train.edge.bench_command import measure

        arch = parse_arch(json.loads(Path(document["model"]["arch"]).read_text()), where="test")
        found = measure(parse(document, [], "test"), arch, steps=3, warmup=1)
        return found, training_flops(arch, 32)

    (first, token_flops), (second, _) = run_ranks(rank, 2)
    assert second is None
    assert (first.device, first.devices, first.steps, first.tokens_per_step) == ("cpu", 2, 3, 128)
    assert first.step_time_min_s <= first.step_time_median_s <= first.step_time_max_s
    assert first.tokens_per_second == pytest.approx(128 / first.step_time_median_s)
    assert first.tokens_per_second_per_device == pytest.approx(first.tokens_per_second / 2)
    wanted = first.tokens_per_second_per_device * token_flops
    assert first.model_flops_per_second_per_device == pytest.approx(wanted)
    assert first.mfu is None
    assert first.peak_memory_bytes > 50 << 20
    assert not root_of(document).exists()
