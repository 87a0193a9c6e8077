"""Sample datasets: what is refused on opening, what is left out, and how rows become sequences."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import fork_ranks
from llm_train.config_parse import parse
from llm_train.edge.inputs import one_template, read_samples, with_boundaries
from llm_train.edge.sample_dataset import read_sample_facts
from llm_train.edge.token_dataset import DataError
from llm_train.sample_order import Padding, SampleOrder
from sft_data import CONTRACT, IGNORED, make_chats, tokenizer, write_packed, write_samples

CASES = json.loads((CONTRACT / "broken" / "cases.json").read_text())
ARCH = Path(__file__).parents[1] / "contracts" / "arch" / "golden" / "qwen3_tiny.json"


@pytest.mark.parametrize("case", [n for n, one in CASES.items() if one["reader"] == "open"])
def test_opening_refuses(case):
    with pytest.raises(DataError) as error:
        read_sample_facts(CONTRACT / "broken" / case / "tiny")
    assert CASES[case]["says"] in str(error.value)


def test_another_task_is_refused():
    with pytest.raises(DataError, match="its task is pairwise, want sft"):
        read_sample_facts(CONTRACT / "golden" / "pairwise" / "tiny")


def run_of(*prefixes, valid=(), sft=None, **train):
    return parse(
        {
            "stage": "sft",
            "model": {"arch": str(ARCH)},
            "data": {"train": list(map(str, prefixes)), "valid": list(map(str, valid))},
            "train": {"max_steps": 1, "seq_length": 16, "global_batch_size": 1, **train},
            "sft": sft or {},
            "optimizer": {"lr": 1.0},
            "save": {"path": "unused"},
        },
        [],
        "test",
    )


def rows_of(config):
    """The sequences of a run, opened as the run opens them."""
    fork_ranks.warm()
    from llm_train.arch import parse as parse_arch
    from llm_train.edge.samples import open_samples

    arch = parse_arch({**json.loads(ARCH.read_text()), "vocab_size": 300}, where="test")
    return open_samples(with_boundaries(config), arch, source=None, say=lambda _text: None).train


def test_packed_rows_begin_anew_where_the_dataset_says():
    """By hand: chats of 10 and 5 tokens and one of padding; two ends of text in the first."""
    rows = rows_of(run_of(CONTRACT / "golden" / "sft_packed" / "tiny", sft={"shuffle": False}))
    sequence = rows[1, 16]
    written = json.loads((CONTRACT / "golden" / "sft_packed" / "rows.json").read_text())
    assert sequence["tokens"][:15].tolist() == written["input_ids"][1][:15]
    assert sequence["position_ids"].tolist() == [*range(10), *range(5), 0]
    learned = [label != IGNORED for label in [*written["labels"][1][1:], IGNORED]]
    assert sequence["loss_mask"].tolist() == list(map(float, learned))
    assert not sequence["loss_mask"][9]  # the next sample's first is nobody's label
    assert sequence["padding"].tolist() == [False] * 15 + [True]


def chats_of(*lengths):
    """Chats of so many tokens, the second half learned."""
    return [(ids := [5] * n, [IGNORED] * (n // 2) + ids[n // 2 :]) for n in lengths]


def test_long_samples_stop_the_run_with_their_number(tmp_path):
    prefix = write_samples(tmp_path / "it", chats_of(8, 20, 30))
    with pytest.raises(ValueError, match=r"it: 2 of 3 samples .* longest has 30 .*\(rows 1, 2\)"):
        rows_of(run_of(prefix))


@pytest.mark.parametrize(
    ("policy", "lengths", "told"),
    [
        ("drop", [8], "2 longer than train.seq_length"),
        # Of the last, nothing that is learned is left.
        ("truncate", [8, 16], "2 truncated, 1 without a learned token"),
    ],
)
def test_long_samples_are_dropped_or_cut_and_counted(policy, lengths, told, tmp_path):
    prefix = write_samples(tmp_path / "it", chats_of(8, 20, 40))
    rows = rows_of(run_of(prefix, sft={"too_long": policy, "unlearned": "drop"}))
    assert rows.lengths.tolist() == lengths
    assert rows.told == told


def test_a_first_token_that_nothing_predicts_is_not_learned(tmp_path):
    prefix = write_samples(tmp_path / "it", [*chats_of(8), ([5, 6, 7], [5, IGNORED, IGNORED])])
    with pytest.raises(ValueError, match=r"in 1 of 2 samples no token is learned \(rows 1\)"):
        rows_of(run_of(prefix))


def test_samples_without_a_learned_token_stop_the_run(tmp_path):
    prefix = write_samples(tmp_path / "it", [*chats_of(8, 9), ([5, 6, 7], [IGNORED] * 3)])
    with pytest.raises(ValueError, match=r"in 1 of 3 samples no token is learned \(rows 2\)"):
        rows_of(run_of(prefix))
    assert rows_of(run_of(prefix, sft={"unlearned": "drop"})).lengths.tolist() == [8, 9]


def test_datasets_of_two_templates_are_refused(tmp_path):
    one = write_samples(tmp_path / "one", chats_of(8))
    other = write_samples(
        tmp_path / "two", chats_of(8), template={"name": "chatml", "digest": "ab" * 32}
    )
    config = run_of(one, other)
    with pytest.raises(DataError, match=r"different chat templates: .*one with tiny .*two with ch"):
        read_samples(config.data, config.train, _arch())


def test_a_template_that_is_not_the_models_is_refused(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{{ another }}")
    template = {"name": "hf", "digest": "ab" * 32}
    config = run_of(write_samples(tmp_path / "it", chats_of(8), template=template))
    facts = read_samples(config.data, config.train, _arch())

    class Source:
        def companions(self):
            return [tmp_path / "chat_template.jinja"]

    with pytest.raises(DataError, match=r"chat template abababababab… of its tokenizer, the mode"):
        one_template(config.data, facts, Source())


def test_a_dataset_of_another_tokenizer_is_refused(tmp_path):
    """Through the command: the model's tokenizer is known by its file."""
    from llm_train.edge.inputs import one_tokenizer

    one = write_samples(tmp_path / "one", chats_of(8))
    other = write_samples(tmp_path / "two", chats_of(8), tokenizer=tokenizer("another"))
    config = run_of(one, other)
    facts = [fact.dataset for fact in read_samples(config.data, config.train, _arch())]
    with pytest.raises(DataError, match="datasets and model name different tokenizers"):
        one_tokenizer(config.data, facts, None)


def test_packed_rows_longer_than_the_sequence_are_refused(tmp_path):
    prefix = write_packed(tmp_path / "it", make_chats(4, longest=20), seq_length=32)
    config = run_of(prefix)
    with pytest.raises(DataError, match=r"packed rows have 32 tokens, train.seq_length is 16"):
        read_samples(config.data, config.train, _arch())


def test_an_epoch_is_every_row_once_and_another_order_each_time():
    order = SampleOrder(rows=50, seed=3, is_shuffled=True)
    first, second = ([order.row(50 * e + i) for i in range(50)] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    lengths = np.arange(50)
    assert order.total(lengths, 60) == lengths.sum() + sum(second[:10])


def test_micro_batches_that_exchange_tensors_are_padded_alike(tmp_path):
    from llm_train.batches import BatchSizes
    from llm_train.train.data import MicroBatches

    prefix = write_samples(tmp_path / "it", chats_of(3, 5, 9, 15))
    indices = MicroBatches(
        first_step=0,
        last_step=1,
        sizes=BatchSizes(global_batch_size=4),
        micro_batch_size=2,
        dp_rank=0,
        dp_size=1,
    )
    found = {}
    for pp in (1, 2):
        config = run_of(prefix, sft={"shuffle": False, "pad_to": 4})
        parallel = config.parallel.model_copy(update={"pp": pp})
        rows = rows_of(config.model_copy(update={"parallel": parallel}))
        found[pp] = [[length for _, length in micro] for micro in rows.padded(indices)]
    assert found == {1: [[8, 8], [16, 16]], 2: [[16, 16], [16, 16]]}


def test_padding_ends_at_the_longest_sequence_allowed():
    padding = Padding(multiple=12, seq_length=16, is_by_step=False)
    assert [padding.padded([n]) for n in (3, 12, 13)] == [12, 12, 16]


def test_keys_of_the_other_stage_are_refused_by_name(tmp_path):
    from llm_train.cli import main

    config = tmp_path / "run.yaml"
    document = json.loads(run_of("x", sft={"pad_to": 4}).model_dump_json())
    document |= {"stage": "pretrain", "data": {"train": ["x"]}}
    config.write_text(json.dumps(document))
    found = CliRunner().invoke(main, ["check", str(config)])
    assert found.exit_code == 1
    assert "sft.pad_to needs stage=sft; found stage=pretrain" in found.output


def test_noise_on_embeddings_is_uniform_and_for_training_alone():
    fork_ranks.warm()
    from llm_train.model.noise import add_noise

    class Chunk(torch.nn.Module):
        pre_process = True

        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Identity()
            self.config = type(
                "Config",
                (),
                {
                    "sequence_parallel": False,
                    "tensor_model_parallel_size": 1,
                    "context_parallel_size": 1,
                },
            )

    chunk, hidden = Chunk(), torch.zeros(100, 2, 64)
    add_noise(chunk, 5.0)
    noise = chunk.train().embedding(hidden)
    # The paper's code: mag_norm = alpha / sqrt(L · d), uniform in ± mag_norm.
    bound = 5.0 / (100 * 64) ** 0.5
    assert noise.abs().max() <= bound
    assert noise.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert torch.equal(chunk.eval().embedding(hidden), hidden)


def _arch():
    from llm_train.arch import parse as parse_arch

    return parse_arch({**json.loads(ARCH.read_text()), "vocab_size": 300}, where="test")
