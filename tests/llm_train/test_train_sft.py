"""Fine-tuning on samples: losses and gradients are transformers', at every layout."""

import pytest
import torch

from ckpt_models import build_model
from ckpt_zoo import CASES
from fork_ranks import run_ranks
from sft_data import IGNORED, make_chats, write_packed, write_samples
from train_curves import each_run, go, train_curves, train_steps

SEQ_LENGTH = 48
CHATS = {"plain": make_chats(8), "multi-turn": make_chats(8, turns=3, seed=1)}
# kind → the chats, whether they are packed
KINDS = {"plain": ("plain", False), "multi-turn": ("multi-turn", False), "packed": ("plain", True)}
STEPS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny random model of transformers, and its folder."""
    folder = tmp_path_factory.mktemp("sft") / "hf"
    model = build_model("qwen3", num_hidden_layers=2)
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def document(model, tmp_path_factory):
    """`document(kind)`: a run of one step over every sample of that kind."""
    folder = tmp_path_factory.mktemp("data")
    written = {}

    def make(kind, **changes):
        name, is_packed = KINDS[kind]
        if kind not in written:
            if is_packed:
                write_packed(folder / kind, CHATS[name], seq_length=SEQ_LENGTH)
            else:
                write_samples(folder / kind, CHATS[name])
            written[kind] = folder / kind
        rows = len(list(read_rows(written[kind])))
        made = {
            "stage": "sft",
            "model": {"load": str(model[1])},
            "data": {"train": [str(written[kind])]},
            "train": {"max_steps": 1, "seq_length": SEQ_LENGTH, "global_batch_size": rows},
            "optimizer": {"lr": 1e-3, "clip_grad": 0.0},
            "save": {"path": str(folder / "run")},
            "device": "cpu",
        }
        for section, keys in changes.items():
            made[section] = {**made.get(section, {}), **keys}
        return made

    return make


def read_rows(prefix):
    """Rows of a dataset as megatron-core reads them."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    return IndexedDataset(f"{prefix}_packed_input_ids_document")


def transformers_step(model, chats):
    """The loss a learned token, and its gradients by name: every chat alone, as transformers has
    it.
    """
    model.zero_grad()
    learned = sum(label != IGNORED for _, labels in chats for label in labels)
    total = 0.0
    for ids, labels in chats:
        out = model(
            input_ids=torch.tensor([ids]),
            labels=torch.tensor([labels]),
            num_items_in_batch=torch.tensor(learned),
        )
        out.loss.backward()
        total += out.loss.item()
    return total, {name: one.grad.clone() for name, one in model.named_parameters()}


def our_step(document):
    """The loss of a step, and the gradients by megatron-core's names."""

    class Log:
        def step(self, metrics):
            self.loss = metrics.loss

    def look(training, splits):
        log = Log()
        go(training, splits, log)
        gradients = {
            name: parameter.main_grad.clone()
            for name, parameter in training.chunks[0].named_parameters()
        }
        return log.loss, gradients

    return run_ranks(lambda _rank: dict(each_run({"it": document}, look))["it"], 1)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_equal_transformers(kind, document, model, tmp_path):
    from llm_ckpt.source import open_source

    loss, gradients = our_step(document(kind))
    wanted_loss, wanted = transformers_step(model[0], CHATS[KINDS[kind][0]])
    assert loss == pytest.approx(wanted_loss, abs=1e-5)
    # As if gradients were weights: llm-ckpt knows what of transformers' names is what of ours.
    model[0].save_pretrained(tmp_path, state_dict=wanted)
    model[0].config.save_pretrained(tmp_path)
    with open_source(tmp_path) as source:
        assert set(source.names()) == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                gradient, source.read(name, (0, 1)).view_as(gradient), atol=1e-5, rtol=1e-4
            )


@pytest.mark.parametrize("case", ["phi3-long", "llama-dynamic"])
def test_the_length_of_a_sample_alone_says_how_fast_its_tokens_turn(case, document, tmp_path):
    """Rotary scalings by length: neither padding nor the rest of a packed row counts for it."""
    lengths = [len(ids) for ids, _ in CHATS["plain"]]
    (zoo,) = (one for one in CASES if one.id == case)
    # Some samples are longer than that, some are not.
    limit = {"phi3-long": 16, "llama-dynamic": zoo.config["max_position_embeddings"]}[case]
    assert min(lengths) <= limit < max(lengths)
    zoo.save(tmp_path / "hf")
    runs = {
        "padded alike": document("plain", train={"micro_batch_size": 8}),
        "packed": document("packed"),
    }
    runs = {name: {**run, "model": {"load": str(tmp_path / "hf")}} for name, run in runs.items()}
    # transformers keeps the base of the longest that it has seen: short ones first.
    wanted, _ = transformers_step(zoo.build(), sorted(CHATS["plain"], key=lambda one: len(one[0])))
    found = train_curves(runs, 1)
    assert {name: curve[0][0] for name, curve in found.items()} == {
        name: pytest.approx(wanted, abs=1e-5) for name in runs
    }


def steps(document, **changes):
    """`STEPS` steps of half the samples each, so that an epoch ends on the way."""
    sections = {name: dict(keys) for name, keys in changes.items()}
    train = {"max_steps": STEPS, "global_batch_size": 4, **sections.pop("train", {})}
    return document("plain", train=train, **sections)


def test_micro_batches_and_padding_change_no_loss(document):
    found = train_curves(
        {
            "one by one": steps(document),
            "four at once": steps(document, train={"micro_batch_size": 4}),
            "padded to the end": steps(document, sft={"pad_to": SEQ_LENGTH}),
        },
        1,
    )
    wanted = found.pop("one by one")
    for curve in found.values():
        assert curve == [pytest.approx(step, rel=1e-5, abs=1e-5) for step in wanted]


def test_the_predecessors_mean_is_that_of_the_micro_batches_means(document, model):
    """MindSpeed-LLM's loss, here of micro-batches of one sample."""
    means = {"loss_mean": "micro_batches", "shuffle": False}
    (step,) = train_steps({"it": document("plain", sft=means)}, 1, ["loss"])["it"]
    wanted = [transformers_step(model[0], [chat])[0] for chat in CHATS["plain"]]
    assert step["loss"] == pytest.approx(sum(wanted) / len(wanted), abs=1e-5)


@pytest.mark.parametrize("times", [3, 2], ids=["full", "lora"])
def test_mfu_counts_the_logits_of_learned_tokens_alone(times, document):
    """By hand, of a peak of 1e9: two layers of hidden 64, 8 heads of 16 over 4 groups, 96 wide."""
    lora = {"lora": {"target_modules": ["linear_qkv"]}} if times == 2 else {}
    made = document("plain", train={"precision": "bf16"}, **lora)

    class Log:
        def step(self, metrics):
            self.it = metrics

    def look(training, splits):
        from llm_train.edge.signals import StopSignal
        from llm_train.train.loop import Loop, Surroundings

        around = Surroundings(
            log=(log := Log()), stop=StopSignal(), memory_bytes=lambda: 0, peak_flops=1e9
        )
        Loop(training, splits, around).go()
        return log.it.mfu * 1e9 * log.it.step_time_s

    found = run_ranks(lambda _rank: dict(each_run({"it": made}, look))["it"], 1)[0]
    layer = 64 * 16 * (8 + 4 + 4) + 8 * 16 * 64 + 3 * 64 * 96
    scores = 4 * 8 * 16 * (SEQ_LENGTH + 1) / 2
    tokens = sum(len(ids) for ids, _ in CHATS["plain"])
    learned = sum(label != IGNORED for _, labels in CHATS["plain"] for label in labels[1:])
    wanted = tokens * 2 * (times * 2 * layer + 3 * scores) + learned * times * 2 * 64 * 250
    assert found == pytest.approx(wanted, rel=1e-6)


LAYOUTS = {
    "tp2": {"parallel": {"tp": 2}},
    "pp2": {"parallel": {"pp": 2}, "train": {"micro_batch_size": 2}},
    "dp2": {"train": {"micro_batch_size": 2}},
    "cp2": {"parallel": {"cp": 2}},
}


@pytest.fixture(scope="module")
def alone(document):
    return train_curves({kind: four_steps(document, kind) for kind in ("plain", "packed")}, 1)


def four_steps(document, kind, **changes):
    sections = {name: dict(keys) for name, keys in changes.items()}
    size = 4 if kind == "plain" else 2
    train = {"max_steps": STEPS, "global_batch_size": size, **sections.pop("train", {})}
    if kind == "packed":
        train["micro_batch_size"] = 1
    return document(kind, train=train, **sections)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_losses_of_one_process(layout, document, alone):
    changes = LAYOUTS[layout]
    documents = {kind: four_steps(document, kind, **changes) for kind in alone}
    found = train_curves(documents, 2)
    for kind, curve in found.items():
        assert curve == [pytest.approx(step, rel=1e-5, abs=1e-5) for step in alone[kind]]
