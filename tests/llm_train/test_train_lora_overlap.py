"""Adapters that overlap exchanges, and fused feed-forwards, have what plain adapters have."""

import itertools
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from fork_ranks import RankError, run_ranks
from llm_train.model.lora.orders import PLAIN, WHOLE, WHOLE_OUTPUT, Sizes, cheapest, operations
from sft_data import make_chats, write_samples
from tiny_archs import EXPERTS, latent
from train_curves import each_run, train_curves

GOLDEN = Path(__file__).parents[1] / "contracts" / "arch" / "golden"
LINEARS = ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]
LATENT_LINEARS = ["linear_q_down_proj", "linear_q_up_proj", "linear_kv_up_proj", *LINEARS[1:]]
CHATS = make_chats(8)


def test_operations_are_those_counted_by_hand():
    """Ten tokens, 3 inputs, 4 outputs, rank 2: A 2·10·2·3 = 120, B 160, B A 48, W 12, x W 240."""
    sizes = Sizes(tokens_in=10, tokens_out=10, inputs=3, outputs=4, rank=2)
    a, b, both, entries, through = 120, 160, 48, 12, 240
    plain = (a + b) + (b + a) + (b + a)
    assert operations(sizes, PLAIN, is_joined=True) == plain == 840
    for is_joined, added in ((True, entries), (False, through)):
        whole_output = (both + added) + (both + added) + (a + b) + (b + a)
        whole = (both + added) + (both + added) + through + both + both
        assert operations(sizes, WHOLE_OUTPUT, is_joined=is_joined) == whole_output
        assert operations(sizes, WHOLE, is_joined=is_joined) == whole
    # A column's rank has a slice of the tokens where A is, all where B is.
    sliced = Sizes(tokens_in=5, tokens_out=10, inputs=3, outputs=4, rank=2)
    assert operations(sliced, PLAIN, is_joined=True) == 3 * (a // 2 + b)
    assert operations(sliced, WHOLE_OUTPUT, is_joined=False) == 2 * (both + through) + a + 2 * b


def test_the_order_follows_the_shape():
    def of(tokens, size, rank, *, is_joined=False, is_alone=True):
        sizes = Sizes(tokens_in=tokens, tokens_out=tokens, inputs=size, outputs=size, rank=rank)
        return cheapest(sizes, is_joined=is_joined, is_alone=is_alone)

    # An adapter is thin; making B A of few tokens is dearer than any product with these.
    assert of(4096, 4096, 16) == PLAIN
    assert of(8, 4096, 16, is_joined=True) == PLAIN
    # As wide as the linear, with many tokens.
    assert of(4096, 64, 64) == WHOLE
    assert of(4096, 64, 96, is_alone=False) == WHOLE_OUTPUT
    assert of(64, 64, 96, is_alone=False) == PLAIN
    # Joined with the weight it is worth it once there are more tokens than inputs:
    # 2 (2 R N² + N²) < 4 T R N.
    assert of(4096, 4096, 16, is_joined=True) == PLAIN
    assert of(8192, 4096, 16, is_joined=True) == WHOLE_OUTPUT


SHAPES = {
    # tokens, inputs, outputs, rank, dtype → the order that is cheapest
    "plain": ((3, 24, 40, 4, torch.float32), PLAIN),
    "plain-bf16": ((64, 24, 40, 4, torch.bfloat16), PLAIN),
    "whole-output": ((64, 24, 40, 4, torch.float32), WHOLE_OUTPUT),
    "whole": ((64, 24, 40, 40, torch.float32), WHOLE),
    "whole-bf16": ((512, 24, 40, 64, torch.bfloat16), WHOLE),
}


@pytest.mark.parametrize("kind", ["ColumnProducts", "RowProducts"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_order_has_the_gradients_of_autograd(name, kind):
    from llm_train.model.lora import products
    from llm_train.model.lora.exchange import Exchange

    (tokens, inputs, outputs, rank, dtype), wanted = SHAPES[name]
    sizes = Sizes(tokens_in=tokens, tokens_out=tokens, inputs=inputs, outputs=outputs, rank=rank)
    assert cheapest(sizes, is_joined=dtype is torch.float32, is_alone=True) == wanted
    torch.manual_seed(0)
    x, w, bias = torch.randn(tokens, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    a, b, grad = torch.randn(rank, inputs), torch.randn(outputs, rank), torch.randn(tokens, outputs)
    x, w, bias, a, b, grad = (one.to(dtype) for one in (x, w, bias, a, b, grad))
    if kind == "RowProducts":
        bias = torch.zeros_like(bias)

    exact = [one.double().requires_grad_() for one in (x, a, b)]
    out = exact[0] @ w.double().t() + bias.double() + 0.5 * exact[0] @ exact[1].t() @ exact[2].t()
    out.backward(grad.double())

    group = SimpleNamespace(size=lambda: 1)
    alone = Exchange(SimpleNamespace(group=group, is_sequence_parallel=False))
    made = getattr(products, kind)(alone, 0.5)
    weights = products.Weights(weight=w, bias=bias if kind == "ColumnProducts" else None, a=a, b=b)
    ours, low = made.forward(x, weights)
    found = made.backward(grad, x, low, weights)
    # Of bf16 the accuracy of its own products.
    near = 1e-5 if dtype is torch.float32 else 2e-2
    for mine, theirs in (
        (ours, out),
        *zip((found.x, found.a, found.b), (one.grad for one in exact), strict=True),
    ):
        error = (mine.double() - theirs).norm() / theirs.norm()
        assert error < near


def _biased(document):
    """Every linear has a bias, and the feed-forward another activation."""
    document["attention"] |= {"qkv_bias": True, "out_bias": True}
    document["mlp"] |= {"bias": True, "activation": "gelu_tanh"}
    return document


ARCHS = {
    "dense": (lambda d: d, {"target_modules": [*LINEARS, "output_layer"]}),
    "biased": (_biased, {"target_modules": LINEARS}),
    "latent": (latent, {"target_modules": LATENT_LINEARS}),
    "wide-adapters": (lambda d: d, {"target_modules": LINEARS, "rank": 48}),
    "nf4": (lambda d: d, {"target_modules": LINEARS, "quantize": "nf4"}),
}
OPTIONS = {
    "plain": {},
    "overlap": {"overlap": True},
    "fused": {"fused_mlp": True},
    "both": {"overlap": True, "fused_mlp": True},
}
LAYOUTS = {
    "one": (1, {}),
    "tp2": (2, {"parallel": {"tp": 2, "sequence_parallel": False}}),
    "tp2-sp": (2, {"parallel": {"tp": 2}}),
    "tp2-sp-full-recompute": (2, {"parallel": {"tp": 2}, "recompute": {"kind": "full"}}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("data") / "it", CHATS)


def document(folder, data, arch, lora, **changes):
    make, targets = ARCHS[arch]
    facts = json.loads((GOLDEN / "qwen3_tiny.json").read_text()) | {"tie_embeddings": False}
    facts["layers"] = [{**facts["layers"][0], "count": 2}]
    path = folder / f"{arch}.json"
    path.write_text(json.dumps(make(facts)))
    return {
        "stage": "sft",
        "model": {"arch": str(path), "init_std": 0.1},
        "data": {"train": [str(data)]},
        "train": {"max_steps": 3, "seq_length": 48, "global_batch_size": 8, "micro_batch_size": 2},
        "optimizer": {"lr": 1e-2, "clip_grad": 0.0},
        "lora": {"rank": 4, "alpha": 12, **targets, **lora},
        "save": {"path": str(folder / "run")},
        "device": "cpu",
        **changes,
    }


def one_step(training, _splits):
    """Losses of two rows, and the gradient of every adapter, where no B is zero any more."""
    (chunk,) = training.chunks
    for name, parameter in chunk.named_parameters():
        if name.endswith(".lora.B"):
            torch.manual_seed(sum(map(ord, name)))
            parameter.data.normal_(std=0.2)
    ids = torch.randint(2, 250, (2, 24), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(24)[None].expand(2, -1)
    losses = chunk.train()(ids, positions, None, labels=ids.roll(-1, 1))
    losses.sum().backward()
    learned = {n: p.main_grad.clone() for n, p in chunk.named_parameters() if p.requires_grad}
    return {"losses": losses.detach(), **learned}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_gradients_are_those_of_plain_adapters(layout, data, tmp_path):
    ranks, changes = LAYOUTS[layout]
    documents = {
        pair: document(tmp_path, data, pair[0], OPTIONS[pair[1]], **changes)
        for pair in itertools.product(ARCHS, OPTIONS)
    }
    for found in run_ranks(lambda _rank: dict(each_run(documents, one_step)), ranks):
        for arch, option in documents:
            plain, ours = found[arch, "plain"], found[arch, option]
            assert plain.keys() == ours.keys()
            for name, wanted in plain.items():
                assert wanted.norm() > 0, name
                error = (ours[name] - wanted).norm() / wanted.norm()
                assert error < 2e-6, (arch, option, name)


class Recorder(TorchDispatchMode):
    """Products by the shape of what they give, and the start and end of each collective."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm_.default):
            self.found.append(f"product {list(out.shape)}")
        return out

    def watch(self, name):
        """Record the collective `name` of torch.distributed from now on."""
        collective = getattr(dist, name)

        def started(result, *args, **kwargs):
            work = collective(result, *args, **kwargs)
            label = f"{name.split('_tensor')[0].removesuffix('_into')} {list(result.shape)}"
            self.found.append(f"start {label}")
            return SimpleNamespace(wait=lambda: (self.found.append(f"end {label}"), work.wait()))

        setattr(dist, name, started)


# T 8, t 4 on each of two ranks; I 6, O 10, i 3 and o 5; R 2.
COLUMN_FORWARD = [
    *("start all_gather [8, 6]", "product [4, 2]"),
    *("start all_gather [8, 2]", "end all_gather [8, 6]", "product [8, 5]"),
    *("end all_gather [8, 2]", "product [8, 5]"),
]
COLUMN_BACKWARD = [
    *("product [8, 2]", "start reduce_scatter [4, 2]"),
    *("product [8, 6]", "start reduce_scatter [4, 6]"),
    *("product [5, 2]", "end reduce_scatter [4, 2]", "product [2, 6]"),
    *("end reduce_scatter [4, 6]", "product [4, 6]"),
]
ROW_FORWARD = [
    *("product [8, 2]", "start reduce_scatter [4, 2]"),
    *("product [8, 10]", "start reduce_scatter [4, 10]"),
    *("end reduce_scatter [4, 2]", "product [4, 10]", "end reduce_scatter [4, 10]"),
]
ROW_BACKWARD = [
    *("start all_gather [8, 10]", "product [4, 2]", "start all_gather [8, 2]"),
    *("product [10, 2]", "end all_gather [8, 10]", "product [8, 3]"),
    *("end all_gather [8, 2]", "product [8, 3]"),
    "product [2, 3]",
]


def test_adapters_are_computed_while_the_exchange_is_under_way():
    def rank(_rank):
        from llm_train.model.lora import products
        from llm_train.model.lora.adapter import Cut, Place
        from llm_train.model.lora.exchange import Exchange

        dist.init_process_group("gloo")
        found = []
        # Sizes whose adapters go by factors: B A of so few tokens is dearer.
        for kind, tokens, inputs, outputs in (("Column", 4, 6, 5), ("Row", 8, 3, 10)):
            place = Place(cut=Cut.NONE, group=dist.group.WORLD, is_sequence_parallel=True)
            made = getattr(products, f"{kind}Products")(Exchange(place), 1.0)
            weights = products.Weights(
                weight=torch.randn(outputs, inputs),
                bias=None,
                a=torch.randn(2, inputs),
                b=torch.randn(outputs, 2),
            )
            x = torch.randn(tokens, inputs)
            out, low = made.forward(x, weights)
            for call in (
                partial(made.forward, x, weights),
                partial(made.backward, out, x, low, weights),
            ):
                originals = dist.all_gather_into_tensor, dist.reduce_scatter_tensor
                with Recorder() as recorder:
                    recorder.watch("all_gather_into_tensor")
                    recorder.watch("reduce_scatter_tensor")
                    call()
                dist.all_gather_into_tensor, dist.reduce_scatter_tensor = originals
                found.append(recorder.found)
        return found

    wanted = [COLUMN_FORWARD, COLUMN_BACKWARD, ROW_FORWARD, ROW_BACKWARD]
    assert run_ranks(rank, 2) == [wanted, wanted]


def kept_by_feed_forwards(training, _splits):
    """Bytes that autograd keeps of a feed-forward for 40 tokens, parameters apart."""
    from llm_train.model.feed_forward import FeedForward

    (chunk,) = training.chunks
    feed_forward = next(one for one in chunk.modules() if isinstance(one, FeedForward))
    weights = {p.untyped_storage().data_ptr() for p in chunk.parameters()}
    x = torch.randn(40, 1, chunk.config.hidden_size, requires_grad=True)
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        feed_forward(x)
    config = chunk.config
    return sum(kept.values()), (config.hidden_size, config.ffn_hidden_size)


def test_a_fused_feed_forward_keeps_less(data, tmp_path):
    from llm_train.arch import parse as parse_arch
    from llm_train.config_parse import parse
    from llm_train.plan import make_plan

    documents = {
        option: document(tmp_path, data, "dense", OPTIONS[option]) for option in ("plain", "fused")
    }
    (found,) = run_ranks(lambda _rank: dict(each_run(documents, kept_by_feed_forwards)), 1)
    tokens, rank, fp32 = 40, 4, 4
    (plain, (hidden, ffn)), (fused, _) = found["plain"], found["fused"]
    # Input, gate and up, and the adapters' two low-rank tensors; beside these plain adapters keep
    # the activation and its product with up.
    assert fused == tokens * (hidden + 2 * ffn + 2 * rank) * fp32
    assert plain == fused + tokens * 2 * ffn * fp32
    # And plan says so, of micro-batches of 2 · 48 tokens in 2 layers.
    facts = parse_arch(
        json.loads(Path(documents["plain"]["model"]["arch"]).read_text()), where="it"
    )
    planned = {
        option: make_plan(parse(made, [], option), facts, 1).memory[0].activations
        for option, made in documents.items()
    }
    assert planned["plain"] - planned["fused"] == 2 * 2 * 48 * 2 * ffn * fp32


def _experts(facts):
    layer = facts["layers"][0]
    facts["layers"] = [{**layer, "count": 1}, {**layer, "count": 1, "feed_forward": "moe"}]
    facts["moe"] = {**EXPERTS, "shared": {"ffn_hidden_size": 32, "gated": False}}
    return facts


def test_a_mixture_trains_as_with_plain_adapters(data, tmp_path, monkeypatch):
    """Its one dense layer fused, its shared experts overlapped, its experts as ever."""
    monkeypatch.setitem(ARCHS, "experts", (_experts, {"target_modules": LINEARS}))
    parallel = {"parallel": {"tp": 2, "ep": 2}}
    documents = {
        name: document(tmp_path, data, "experts", OPTIONS[name], **parallel)
        for name in ("plain", "both")
    }
    found = train_curves(documents, 2)
    assert found["both"] == [pytest.approx(step, rel=1e-5) for step in found["plain"]]
    assert found["both"][-1][0] < found["both"][0][0]


def test_what_cannot_be_one_function_is_refused_by_name(data, tmp_path):
    from llm_train.arch import parse as parse_arch
    from llm_train.check import problems
    from llm_train.config_parse import parse

    def refused(change_arch=lambda facts: facts, **lora):
        made = document(tmp_path, data, "dense", lora)
        facts = change_arch(json.loads(Path(made["model"]["arch"]).read_text()))
        found = problems(parse(made, [], "it"), parse_arch(facts, where="it"), 1)
        return [one for one in found if "lora" in one]

    def all_experts(facts):
        facts = _experts(facts)
        return facts | {"layers": [{**facts["layers"][1], "count": 2}], "mlp": None}

    assert refused(overlap=True, fused_mlp=True) == []
    assert refused(overlap=True, dora=True) == [
        "lora.overlap with lora.dora cannot be used with lora: it scales the linear's own output"
    ]
    assert refused(fused_mlp=True, dropout=0.1) == [
        "lora.fused_mlp with lora.dropout cannot be used with lora: the adapter sees another "
        "input than the linear"
    ]
    assert refused(all_experts, fused_mlp=True) == [
        "lora.fused_mlp: the model has no dense feed-forward; want false"
    ]
    made = document(tmp_path, data, "dense", {"fused_mlp": True})
    made["lora"]["target_modules"] = ["linear_qkv", "linear_fc1"]
    with pytest.raises(
        RankError,
        match=r"lora.fused_mlp: decoder.layers.0.mlp has an adapter on one of its linears",
    ):
        run_ranks(lambda _rank: dict(each_run({"it": made}, one_step)), 1)
