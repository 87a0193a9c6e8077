"""Runs with the fused operators of llm-kernels-npu train as those with plain torch do."""

import json
from collections import Counter
from pathlib import Path

import pytest

from fork_ranks import run_ranks
from tiny_archs import EXPERTS, SIGMOID_ROUTER, latent
from train_curves import each_run, steps_of

STEPS = 20
EVERYWHERE = {"rms_norm", "swiglu", "rope"}


@pytest.fixture
def compared(run_document, tmp_path):
    """`compared(change of arch.json, run sections)`: both runs' steps, and what was called.

    The operators are llm-kernels-npu's own, listened to in the first rank.
    """

    def train(change, *, world_size=1, **sections):
        arch = json.loads(Path(run_document["model"]["arch"]).read_text())
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(change(arch)))
        sizes = {"max_steps": STEPS, "global_batch_size": 4, "micro_batch_size": 2}
        document = {
            **run_document,
            "model": {**run_document["model"], "arch": str(path)},
            "train": {**run_document["train"], **sizes},
            **sections,
        }
        runs = {"plain": document, "kernels": {**document, "kernels": "llm-kernels-npu"}}

        def rank(_rank):
            calls = Counter()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("llm_kernels_npu.provider.bind", listening(calls))
                return dict(each_run(runs, steps)), calls

        return run_ranks(rank, world_size)[0]

    return train


def steps(training, splits):
    return steps_of(training, splits, ("loss", "grad_norm"))


def listening(calls):
    """`select.bind` whose operators count their calls by name."""
    from llm_kernels_npu.select import bind

    def bind_counted(choice):
        run = bind(choice)

        def call(*args, **kwargs):
            calls[choice.operator] += 1
            return run(*args, **kwargs)

        return call

    return bind_counted


def assert_same(found):
    plain, fused = found["plain"], found["kernels"]
    assert len(plain) == len(fused) == STEPS
    for step, (one, two) in enumerate(zip(fused, plain, strict=True), start=1):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5), step
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4), step
    assert plain[-1]["loss"] < plain[0]["loss"]


def sinks_and_windows(arch):
    """As gpt-oss's: a learned score beside those of keys, every second layer with a window."""
    arch["attention"] |= {"sinks": True}
    layer = {**arch["layers"][0], "count": 1}
    return {**arch, "layers": [{**layer, "window": 9}, layer]}


def deepseek(arch):
    """Latent attention, and experts of a sigmoid router beside a shared one."""
    layer = {**arch["layers"][0], "count": 1}
    moe = {
        **EXPERTS,
        "experts": 8,
        "shared": {"ffn_hidden_size": 24, "gated": False},
        "router": {**SIGMOID_ROUTER, "groups": 2, "top_groups": 1},
    }
    layers = [layer, {**layer, "feed_forward": "moe"}]
    return latent({**arch, "layers": layers, "moe": moe, "hidden_size": 32})


def test_dense_model_trains_as_with_plain_torch(compared):
    found, calls = compared(sinks_and_windows)
    assert_same(found)
    # Two layers of two norms and two head norms, and the last: nine a micro-batch of two a step.
    assert calls["rms_norm"] == 9 * 2 * STEPS
    assert calls["attention"] == calls["swiglu"] == 2 * 2 * STEPS
    assert calls["cross_entropy"] == 2 * STEPS
    assert calls["rope"] == 2 * 2 * 2 * STEPS


def test_packed_rows_of_a_layer_norm_model_train_as_with_plain_torch(compared, run_document):
    def layer_norms(arch):
        return {**arch, "norm": {**arch["norm"], "kind": "layer"}}

    found, calls = compared(layer_norms, data={**run_document["data"], "reset_documents": True})
    assert_same(found)
    assert calls["layer_norm"] > 0
    assert calls["attention"] == 2 * 2 * STEPS


ADAPTERS = {"lora": {"target_modules": ["linear_proj", "linear_fc1", "linear_fc2"]}}


@pytest.mark.parametrize(
    ("overlap", "sections"),
    [(False, {}), (True, {}), (False, ADAPTERS)],
    ids=["plain", "overlap", "lora"],
)
def test_experts_over_two_ranks_train_as_with_plain_torch(compared, overlap, sections):
    moe = {"grouped_gemm": True, "aux_loss_coeff": 0.1, "shared_expert_overlap": overlap}
    found, calls = compared(deepseek, world_size=2, parallel={"ep": 2}, moe=moe, **sections)
    assert_same(found)
    # One micro-batch of two sequences a rank; latent attention keeps torch's own.
    assert calls["permute"] == calls["unpermute"] == STEPS
    assert calls["grouped_matmul"] == 2 * STEPS
    assert calls["attention"] == 0
    assert calls.keys() >= EVERYWHERE


def test_a_cut_model_trains_as_with_plain_torch(compared):
    found, calls = compared(lambda arch: arch, world_size=2, parallel={"tp": 2})
    assert_same(found)
    assert calls["attention"] > 0
    assert calls["vocab_parallel_cross_entropy"] == 2 * STEPS
    assert calls["cross_entropy"] == 0


def in_parts(document):
    """Two micro-batches of two sequences a step, 24 tokens' logits at a time."""
    sizes = {"max_steps": STEPS, "global_batch_size": 4, "micro_batch_size": 2}
    return {"train": {**document["train"], **sizes, "loss_chunk": 24}}


def tied(arch):
    return {**arch, "tie_embeddings": True}


def untied(arch):
    return {**arch, "tie_embeddings": False}


def bounded(arch):
    return {**untied(arch), "scalars": {**arch["scalars"], "logit_softcap": 3.0}}


def adapters(*names):
    return {"lora": {"target_modules": names}}


@pytest.mark.parametrize(
    ("change", "sections", "is_one_operator"),
    [
        (tied, {}, True),
        (untied, adapters("linear_fc1"), True),
        (untied, adapters("linear_fc1", "output_layer"), False),
        (bounded, {}, False),
    ],
    ids=["tied", "frozen output", "adapted output", "bounded logits"],
)
def test_loss_in_parts_is_one_operator_where_logits_are_one_product(
    change, sections, is_one_operator, compared, run_document
):
    found, calls = compared(change, **in_parts(run_document), **sections)
    assert_same(found)
    assert calls["linear_cross_entropy"] == (2 * STEPS if is_one_operator else 0)
    assert (calls["cross_entropy"] == 0) == is_one_operator


def test_loss_in_parts_of_a_cut_vocabulary_is_that_of_plain_torch(compared, run_document):
    found, calls = compared(tied, world_size=2, parallel={"tp": 2}, **in_parts(run_document))
    assert_same(found)
    assert calls["linear_cross_entropy"] == 0
    assert calls["vocab_parallel_cross_entropy"] > 2 * STEPS


def test_unknown_provider_is_an_error_that_names_what_to_install():
    from llm_train.edge.kernels import find_provider
    from llm_train.weights import ProviderError

    with pytest.raises(ProviderError) as caught:
        find_provider("flash")
    assert str(caught.value) == (
        "kernels=flash: no installed package provides 'llm_train.kernels' under that name (found: "
        "llm-kernels-npu); pip install llm-kernels-npu, or set kernels=null for plain torch"
    )


def test_unknown_provider_stops_a_run_before_torch_is_loaded(run_document, tmp_path):
    import subprocess
    import sys

    import yaml

    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run_document))
    code = (
        "import sys\n"
        "from llm_train.cli import main\n"
        f"try: main(['run', {str(path)!r}, 'kernels=flash'])\n"
        "finally: assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "kernels=flash: no installed package provides" in done.stderr
    assert "AssertionError" not in done.stderr


def test_what_a_model_asks_of_attention_is_told_to_the_provider(run_document):
    from llm_train.arch import parse as parse_arch
    from llm_train.config_parse import parse
    from llm_train.edge.kernels import attention_features

    document = json.loads(Path(run_document["model"]["arch"]).read_text())
    config = parse(run_document, [], "plain")
    assert attention_features(config, parse_arch(document, where="plain")) == set()
    arch = parse_arch(sinks_and_windows(document), where="changed")
    assert attention_features(config, arch) == {"sinks", "window"}
    packed = parse(run_document, ["data.reset_documents=true"], "packed")
    assert attention_features(packed, arch) == {"sinks", "window", "documents"}
