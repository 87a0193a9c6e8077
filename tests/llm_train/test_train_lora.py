"""Low-rank adapters: peft's logits and gradients, at every layout, and nothing else is trained."""

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers

from ckpt_models import build_model
from fork_ranks import run_ranks
from sft_data import IGNORED, make_chats, write_samples
from tiny_archs import EXPERTS, SIGMOID_ROUTER, latent
from train_curves import each_run, go, train_curves

GOLDEN = Path(__file__).parents[1] / "contracts" / "arch" / "golden"
LINEARS = ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]
KINDS = {
    "lora": {"target_modules": LINEARS, "alpha": 12},
    "rslora": {"target_modules": ["linear_qkv", "linear_fc2"], "rslora": True},
    "dora": {"target_modules": LINEARS, "dora": True, "alpha": 12},
    "ends": {"target_modules": ["word_embeddings", "output_layer", "linear_proj"], "alpha": 12},
    "dora-ends": {"target_modules": ["word_embeddings", "output_layer"], "dora": True, "alpha": 12},
}
CHATS = make_chats(8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "hf"
    model = build_model("qwen3", num_hidden_layers=2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("data") / "it", CHATS)


def document(data, save, lora, *, load=None, arch=None, **changes):
    """A run of three steps over all samples."""
    made = {
        "stage": "sft",
        "model": {"load": str(load)} if load else {"arch": str(arch), "init_std": 0.1},
        "data": {"train": [str(data)]},
        "train": {"max_steps": 3, "seq_length": 48, "global_batch_size": 8, "micro_batch_size": 2},
        "optimizer": {"lr": 1e-2, "clip_grad": 0.0},
        "lora": {"rank": 4, **lora},
        "save": {"path": str(save)},
        "device": "cpu",
    }
    for section, keys in changes.items():
        made[section] = {**made.get(section, {}), **keys}
    return made


def trained(training, splits):
    """After a run: logits of a row, what is trained and what was not changed, PEFT's folder."""
    from llm_train.edge.adapter_files import adapter_files

    class Log:
        def step(self, metrics):
            self.loss = metrics.loss

    (chunk,) = training.chunks
    frozen = {n: p.clone() for n, p in chunk.named_parameters() if not p.requires_grad}
    go(training, splits, Log())
    after = dict(chunk.named_parameters())
    files = adapter_files(training.config, training.source.arch)
    output = Path(training.config.save.path) / "adapter"
    files.write(files.gathered(training.chunks), output)
    chunk.eval()
    ids = torch.tensor([CHATS[0][0]])
    with torch.no_grad():
        logits = chunk(ids, torch.arange(ids.shape[1])[None], None)
    # The gradients at the weights that were exported.
    chunk.train()
    for parameter in chunk.parameters():
        parameter.grad = None
    for chunk_wrapped in training.trainable.chunks:
        chunk_wrapped.zero_grad_buffer()
    labels = torch.tensor([CHATS[0][1]])[:, 1:]
    losses = chunk(
        ids[:, :-1], torch.arange(ids.shape[1] - 1)[None], None, labels=labels.clamp(min=0)
    )
    (losses * (labels != IGNORED)).sum().backward()
    gradients = {n: p.main_grad.clone() for n, p in after.items() if p.requires_grad}
    return {
        "logits": logits,
        "output": output,
        "gradients": gradients,
        "is_frozen": all(torch.equal(after[name], tensor) for name, tensor in frozen.items()),
    }


def run_one(made, look=trained):
    return run_ranks(lambda _rank: dict(each_run({"it": made}, look))["it"], 1)[0]


@pytest.fixture(scope="module")
def runs(model, data, tmp_path_factory):
    """Every kind, trained by one process."""
    folder = tmp_path_factory.mktemp("runs")
    documents = {
        kind: document(data, folder / kind, lora, load=model) for kind, lora in KINDS.items()
    }
    return run_ranks(lambda _rank: dict(each_run(documents, trained)), 1)[0]


def in_peft(model, folder, *, is_trainable=False):
    base = transformers.AutoModelForCausalLM.from_pretrained(model)
    return peft.PeftModel.from_pretrained(base, folder, is_trainable=is_trainable)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_the_adapter_and_has_its_logits(kind, runs, model):
    found = runs[kind]
    ids = torch.tensor([CHATS[0][0]])
    loaded = in_peft(model, found["output"])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, found["logits"], atol=1e-5, rtol=1e-5)
        with loaded.disable_adapter():
            assert not torch.allclose(loaded(ids).logits, found["logits"], atol=1e-3)
    assert found["is_frozen"]


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_gradients_are_those_of_peft(kind, runs, model):
    found = runs[kind]
    loaded = in_peft(model, found["output"], is_trainable=True)
    ids, labels = (torch.tensor([one]) for one in CHATS[0])
    loaded(input_ids=ids, labels=labels, num_items_in_batch=torch.tensor(1)).loss.backward()
    theirs = {name: p.grad for name, p in loaded.named_parameters() if p.grad is not None}
    layer = "base_model.model.model.layers.1"
    ours = {
        name.removeprefix("decoder.layers.1."): gradient
        for name, gradient in found["gradients"].items()
        if name.startswith("decoder.layers.1.")
    }
    linears = {
        "self_attention.linear_proj": ("self_attn.o_proj",),
        "self_attention.linear_qkv": tuple(f"self_attn.{one}_proj" for one in "qkv"),
        "mlp.linear_fc1": ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.linear_fc2": ("mlp.down_proj",),
    }
    for ours_name, names in linears.items():
        wanted = sum(theirs[f"{layer}.{name}.lora_A.default.weight"] for name in names)
        torch.testing.assert_close(ours[f"{ours_name}.lora.A"], wanted, atol=1e-4, rtol=1e-4)
        if ours_name == "self_attention.linear_qkv":
            continue  # heads of q, k and v lie in turns
        wanted = torch.cat([theirs[f"{layer}.{name}.lora_B.default.weight"] for name in names])
        torch.testing.assert_close(ours[f"{ours_name}.lora.B"], wanted, atol=1e-4, rtol=1e-4)
        if kind == "dora":
            vectors = [f"{layer}.{name}.lora_magnitude_vector.default.weight" for name in names]
            wanted = torch.cat([theirs[name] for name in vectors])
            torch.testing.assert_close(
                ours[f"{ours_name}.lora.magnitude"], wanted, atol=1e-4, rtol=1e-4
            )


def test_gradients_of_an_embeddings_dora_are_those_of_peft(runs, model):
    found = runs["dora-ends"]
    loaded = in_peft(model, found["output"], is_trainable=True)
    ids, labels = (torch.tensor([one]) for one in CHATS[0])
    loaded(input_ids=ids, labels=labels, num_items_in_batch=torch.tensor(1)).loss.backward()
    theirs = {name: p.grad for name, p in loaded.named_parameters() if p.grad is not None}
    at = "base_model.model.model.embed_tokens"
    for ours, wanted in (
        ("A", theirs[f"{at}.lora_embedding_A.default"]),
        ("B", theirs[f"{at}.lora_embedding_B.default"]),
        ("magnitude", theirs[f"{at}.lora_magnitude_vector.default.weight"]),
    ):
        gradient = found["gradients"][f"embedding.word_embeddings.lora.{ours}"]
        torch.testing.assert_close(gradient, wanted, atol=1e-4, rtol=1e-4)


def _dense(document):
    return {**document, "layers": [{**document["layers"][0], "count": 2}]}


def _experts(document):
    layer = document["layers"][0]
    shared = {"ffn_hidden_size": 32, "gated": False}
    return {
        **document,
        "layers": [{**layer, "count": 1}, {**layer, "count": 1, "feed_forward": "moe"}],
        "moe": {**EXPERTS, "ffn_hidden_size": 64, "shared": shared},
    }


LATENT_LINEARS = [
    "linear_q_down_proj",
    "linear_q_up_proj",
    "linear_kv_down_proj",
    "linear_kv_up_proj",
    *LINEARS[1:],
]
ARCHS = {
    "dense": (_dense, {"target_modules": [*LINEARS, "word_embeddings", "output_layer"]}),
    "dora": (_dense, {"target_modules": LINEARS, "dora": True}),
    "dora-ends": (_dense, {"target_modules": ["word_embeddings", "output_layer"], "dora": True}),
    "latent": (lambda d: latent(_dense(d)), {"target_modules": LATENT_LINEARS}),
    "experts": (_experts, {"target_modules": LINEARS}),
    # Under expert parallelism nothing dense is left to train.
    "experts-alone": (_experts, {"target_modules": ["*.experts.*"]}),
}
# layout → config, the models of ARCHS that are trained at it
LAYOUTS = {
    "tp2": ({"parallel": {"tp": 2}}, ("dense", "dora", "dora-ends", "latent")),
    "tp2-no-sp": (
        {"parallel": {"tp": 2, "sequence_parallel": False}},
        ("dense", "dora-ends", "latent"),
    ),
    "tp2-ep2": ({"parallel": {"tp": 2, "ep": 2}}, ("experts",)),
    "ep2": ({"parallel": {"ep": 2}}, ("experts-alone",)),
    "tp2-etp2": ({"parallel": {"tp": 2, "etp": 2}}, ("experts",)),
    "pp2": ({"parallel": {"pp": 2}}, ("dense", "dora", "dora-ends")),
    "cp2": ({"parallel": {"cp": 2}}, ("dense",)),
    "fsdp2": ({"parallel": {"fsdp": True}}, tuple(ARCHS.keys() - {"dora-ends"})),
    "fsdp2-full-recompute": (
        {"parallel": {"fsdp": True}, "recompute": {"kind": "full"}},
        ("dense", "experts"),
    ),
    "dp2-full-recompute": ({"recompute": {"kind": "full"}}, ("dense", "experts")),
}


def test_expert_biases_of_a_frozen_router_stay(data, tmp_path):
    """They are no parameters, and move by themselves where a model is trained."""
    made = arch_document("experts", data, tmp_path)
    path = Path(made["model"]["arch"])
    arch = json.loads(path.read_text())
    path.write_text(json.dumps({**arch, "moe": {**arch["moe"], "router": SIGMOID_ROUTER}}))

    def look(training, splits):
        (router,) = [m for m in training.chunks[0].modules() if hasattr(m, "expert_bias")]
        go(training, splits, None)
        return router.expert_bias

    frozen, whole = run_one(made, look), run_one({**made, "lora": None}, look)
    assert not frozen.any()
    assert whole.any()


def arch_document(name, data, folder, **changes):
    make, lora = ARCHS[name]
    arch = make(json.loads((GOLDEN / "qwen3_tiny.json").read_text()))
    arch = {**arch, "tie_embeddings": False}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(arch))
    return document(data, folder / name, {**lora, "alpha": 12}, arch=path, **changes)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return train_curves({name: arch_document(name, data, folder) for name in ARCHS}, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_the_same_adapters(layout, alone, data, tmp_path):
    changes, names = LAYOUTS[layout]
    found = train_curves({n: arch_document(n, data, tmp_path, **changes) for n in names}, 2)
    for name, curve in found.items():
        assert curve == [pytest.approx(step, rel=1e-5, abs=1e-5) for step in alone[name]], name
        # The norms of steps tell that every adapter has its gradient: B alone at first.
        assert curve[-1][0] < curve[0][0]


@pytest.mark.parametrize("name", ARCHS)
def test_plan_counts_what_is_trained(name, data, tmp_path):
    from llm_train.arch import parse as parse_arch
    from llm_train.config_parse import parse
    from llm_train.plan import make_plan

    made = arch_document(name, data, tmp_path)

    def look(training, _splits):
        trained = [p.numel() for p in training.chunks[0].parameters() if p.requires_grad]
        return sum(trained), sum(p.numel() for p in training.chunks[0].parameters())

    trained, everything = run_one(made, look)
    arch = parse_arch(json.loads(Path(made["model"]["arch"]).read_text()), where=name)
    plan = make_plan(parse(made, [], name), arch, 1)
    assert (plan.trained_parameters, plan.total_parameters) == (trained, everything)
    # fp32: a gradient and two moments for each.
    assert plan.memory[0].gradients == 4 * trained
    assert plan.memory[0].optimizer == 8 * trained
