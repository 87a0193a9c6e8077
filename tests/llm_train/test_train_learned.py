"""Logits of learned tokens alone: the same losses and gradients, and no other logits exist."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from fork_ranks import run_ranks
from sft_data import make_chats, write_samples
from train_curves import each_run, go, steps_of

GOLDEN = Path(__file__).parents[1] / "contracts" / "arch" / "golden"
VALUES = ("loss", "mtp_loss", "grad_norm")


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """`document(**sections)`: three steps of short answers, tied ends and a prediction layer."""
    folder = tmp_path_factory.mktemp("learned")
    arch = json.loads((GOLDEN / "qwen3_tiny.json").read_text())
    arch |= {"tie_embeddings": True, "mtp": {"layers": 1}}
    arch["layers"][0]["count"] = 2
    (folder / "arch.json").write_text(json.dumps(arch))
    write_samples(folder / "chats", make_chats(12))

    def make(**sections):
        made = {
            "stage": "sft",
            "model": {"arch": str(folder / "arch.json"), "init_std": 0.1},
            "data": {"train": [str(folder / "chats")]},
            "train": {"max_steps": 3, "seq_length": 32, "global_batch_size": 4},
            "optimizer": {"lr": 1e-3},
            "save": {"path": str(folder / "run")},
            "device": "cpu",
        }
        for section, keys in sections.items():
            made[section] = {**made.get(section, {}), **keys}
        return made

    return make


LAYOUTS = {
    "alone": (1, {"train": {"micro_batch_size": 4}}),
    "tp2": (2, {"parallel": {"tp": 2}, "train": {"micro_batch_size": 2}}),
    "tp2 without sequence parallel": (2, {"parallel": {"tp": 2, "sequence_parallel": False}}),
    "pp2": (2, {"parallel": {"pp": 2}, "train": {"micro_batch_size": 2}}),
    "cp2": (2, {"parallel": {"cp": 2}, "train": {"micro_batch_size": 2}}),
    "fsdp": (2, {"parallel": {"fsdp": True}}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_gradients_are_those_of_all_logits(layout, document, monkeypatch):
    """Beside them the run that computes all logits, at once and in parts that do not divide them.

    That one is transformers' (test_train_sft.py) at the layouts without prediction layers.
    """
    from llm_train.model import learned

    ranks, sections = LAYOUTS[layout]
    parts = {**sections, "train": {**sections.get("train", {}), "loss_chunk": 5}}
    documents = {"once": document(**sections), "parts": document(**parts)}

    def rank(_rank):
        return dict(each_run(documents, lambda *run: steps_of(*run, VALUES)))

    found = run_ranks(rank, ranks)[0]
    monkeypatch.setattr(learned, "_LEAST_SAVED", 1.0)
    wanted = run_ranks(rank, ranks)[0]["once"]
    for steps in found.values():
        for step, want in zip(steps, wanted, strict=True):
            assert step == pytest.approx(want, rel=1e-5, abs=1e-6)


class Widest(TorchDispatchMode):
    """The most rows of `columns` numbers that any operation puts out in one tensor."""

    def __init__(self, columns):
        super().__init__()
        self.columns, self.rows = columns, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in tree_iter(out):
            if isinstance(one, torch.Tensor) and one.shape[-1:] == (self.columns,):
                self.rows = max(self.rows, one.numel() // self.columns)
        return out


def test_no_logits_of_other_tokens_exist(document, tmp_path):
    """100 chats a step, padded to 32: half of a chat is learned, and 17 tokens are in the mean."""
    columns = 251  # of logits alone: no weight's gradient is transposed
    made = document(train={"max_steps": 1, "global_batch_size": 100, "micro_batch_size": 100})
    arch = json.loads(Path(made["model"]["arch"]).read_text()) | {
        "vocab_size": columns,
        "mtp": None,
    }
    (tmp_path / "arch.json").write_text(json.dumps(arch))
    made["model"]["arch"] = str(tmp_path / "arch.json")
    chats = make_chats(100)
    made["data"]["train"] = [str(write_samples(tmp_path / "chats", chats))]
    learned = sum(label >= 0 for _, labels in chats for label in labels)

    class Log:
        def step(self, metrics):
            pass

    def look(training, splits):
        with Widest(columns) as widest:
            go(training, splits, Log())
        return widest.rows

    found = run_ranks(lambda _rank: dict(each_run({"it": made}, look)), 1)[0]
    assert found["it"] == learned < 100 * 32 / 3


def test_rows_and_places_on_two_ranks():
    """Worked by hand: of 4 tokens of 2 sequences each rank has 2, learned are 1 and 3 of them."""
    from llm_train.model.learned import LearnedTokens

    mask = torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    assert LearnedTokens.of(mask, ranks=1).places.tolist() == [1, 2, 6, 7]
    learned = LearnedTokens.of(mask * torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0] * 4]), ranks=2)
    # Rank 0 has token 1 of sequence 0 alone, and names one that fills up; rank 1 tokens 2 and 3 of
    # sequence 1. Rows are t · 2 + b.
    assert learned.rows[0, 0] == 2
    assert learned.rows[1].tolist() == [1, 3]
    assert learned.places.tolist() == [1, 8, 6, 7]
    losses = learned.spread(torch.tensor([[1.0, 9.0, 2.0, 3.0]]), torch.Size((2, 4)))
    assert losses.tolist() == [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 3.0]]


def test_one_row_is_left_where_nothing_is_learned():
    from llm_train.model.learned import LearnedTokens

    learned = LearnedTokens.of(torch.zeros(2, 8), ranks=2)
    assert learned.rows.shape == (2, 1)
    assert learned.places.tolist() == [16, 16]


def test_all_logits_are_computed_where_almost_all_tokens_are_learned():
    from llm_train.model.learned import LearnedTokens

    mask = torch.ones(1, 16)
    mask[0, 0] = 0
    assert LearnedTokens.of(mask, ranks=1) is None
