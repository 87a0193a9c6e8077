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
from llm_train.sample_order import BlendedOrder, Padding, SampleOrder, Share
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


def run_of(*prefixes, valid=(), sft=None, data=None, **train):
    return parse(
        {
            "stage": "sft",
            "model": {"arch": str(ARCH)},
            "data": {
                "train": list(map(str, prefixes)),
                "valid": list(map(str, valid)),
                **(data or {}),
            },
            "train": {"max_steps": 1, "seq_length": 16, "global_batch_size": 1, **train},
            "sft": sft or {},
            "optimizer": {"lr": 1.0},
            "save": {"path": "unused"},
        },
        [],
        "test",
    )


def rows_of(config):
    """The sequences that a run trains on."""
    return splits_of(config).train


def splits_of(config, say=lambda _text: None):
    """The sequences of a run, opened as the run opens them."""
    fork_ranks.warm()
    from llm_train.arch import parse as parse_arch
    from llm_train.edge.samples import open_samples

    arch = parse_arch({**json.loads(ARCH.read_text()), "vocab_size": 300}, where="test")
    return open_samples(with_boundaries(config), arch, source=None, say=say)


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


BAD_ROWS = {
    "token": ([7, 299, 9], [IGNORED, IGNORED, 9], "token 299 at 1, its tokenizer has 250"),
    "label": ([7, 8, 9], [IGNORED, IGNORED, 10], "label 10 of token 9 at 2; want -100 or the"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_rows_that_are_none_of_the_format_are_refused_as_they_are_read(name, tmp_path):
    ids, labels, says = BAD_ROWS[name]
    prefix = write_samples(tmp_path / "it", [*chats_of(5), (ids, labels)])
    rows = rows_of(run_of(prefix, sft={"shuffle": False}))
    assert rows[0]["tokens"].shape == (5,)
    with pytest.raises(ValueError, match=f"row 1 of .*it: {says}"):
        _ = rows[1]


def test_an_epoch_is_every_row_once_and_another_order_each_time():
    order = SampleOrder(rows=50, seed=3, is_shuffled=True)
    first, second = ([order.row(50 * e + i) for i in range(50)] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    lengths = np.arange(50)
    assert order.total(lengths, 60) == lengths.sum() + sum(second[:10])


def test_weights_draw_from_each_dataset_in_proportion():
    """By hand: draws of 3/4 are due at 2/3, 2, 10/3, …, those of 1/4 at 2, 6, ….

    Of draws due at once the first dataset's comes first.
    """
    order = BlendedOrder([2, 3], [3.0, 1.0], seed=1, is_shuffled=False)
    wanted = [0, 1, 2, 0, 1, 0, 3, 1, 0]
    assert [order.row(place) for place in range(9)] == wanted
    lengths = np.array([1, 10, 100, 1000, 10000])
    for stop in range(10):
        assert order.total(lengths, stop) == lengths[wanted[:stop]].sum()
    assert order.drawn(9) == [7, 2]


def test_weighted_datasets_have_epochs_of_their_own_and_an_order_that_no_resume_changes():
    order = BlendedOrder([40, 7], [0.3, 0.7], seed=1, is_shuffled=True)
    found = [order.row(place) for place in range(4000)]
    small = [row for row in found if row >= 40]
    assert len(small) == pytest.approx(0.7 * 4000, abs=2)
    epochs = [small[at : at + 7] for at in range(0, 70, 7)]
    assert all(sorted(epoch) == list(range(40, 47)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 5
    # A run that begins in the middle has not looked at what comes before.
    again = BlendedOrder([40, 7], [3.0, 7.0], seed=1, is_shuffled=True)
    assert [again.row(place) for place in range(3999, 2900, -1)] == found[3999:2900:-1]


def test_a_run_tells_how_often_weighted_datasets_are_gone_through(tmp_path):
    prefixes = [
        write_samples(tmp_path / "one", chats_of(8, 9)),
        write_samples(tmp_path / "two", chats_of(4, 5, 6)),
    ]
    config = run_of(
        *prefixes, data={"weights": [3, 1]}, max_steps=4, global_batch_size=2, micro_batch_size=1
    )
    said = []
    rows = splits_of(config, said.append).train
    assert [line.partition(": ")[2] for line in said[1:]] == [
        f"{prefixes[0]}: 0.75 of all samples, 6 of them, its 2 sequences 3.00 times",
        f"{prefixes[1]}: 0.25 of all samples, 2 of them, its 3 sequences 0.67 times",
    ]
    assert [rows.length(place) > 7 for place in range(8)].count(True) == 6
    assert rows.tokens(0, 8) == sum(rows.length(place) for place in range(8))


def test_a_weight_of_a_dataset_without_samples_is_refused(tmp_path):
    one = write_samples(tmp_path / "one", chats_of(8, 9))
    two = write_samples(tmp_path / "two", chats_of(40, 40))
    config = run_of(one, two, data={"weights": [1, 1]}, sft={"too_long": "drop"})
    with pytest.raises(ValueError, match=r"two: no sample is left to train on \(2 longer.*weight"):
        rows_of(config)


def test_a_share_of_each_dataset_is_held_out_whatever_the_seed_and_what_is_dropped(tmp_path):
    lengths = {"one": range(4, 14), "two": [*range(24, 28)]}
    prefixes = [write_samples(tmp_path / name, chats_of(*some)) for name, some in lengths.items()]
    held_out = []
    for changes in ({"seed": 1}, {"seed": 2}, {"seq_length": 26}):
        splits = splits_of(
            run_of(
                *prefixes,
                data={"valid_fraction": 0.2},
                sft={"too_long": "drop"},
                **{"seq_length": 32, "eval_every": 1, **changes},
            )
        )
        train, valid = splits.train.lengths.tolist(), splits.valid.lengths.tolist()
        limit = changes.get("seq_length", 32)
        assert sorted(train + valid) == [
            n for n in (*lengths["one"], *lengths["two"]) if n <= limit
        ]
        held_out.append(valid)
    assert held_out[0] == held_out[1]
    assert sum(n < 20 for n in held_out[0]) == 2  # of ten
    assert sum(n > 20 for n in held_out[0]) == 1  # of four
    assert held_out[2] == [n for n in held_out[0] if n <= 26]


def test_a_held_out_share_leaves_a_row_on_either_side():
    assert Share.HELD_OUT.chosen(3, 0.01).sum() == Share.REST.chosen(3, 0.99).sum() == 1


def test_one_row_cannot_be_split(tmp_path):
    prefix = write_samples(tmp_path / "one", chats_of(8))
    with pytest.raises(ValueError, match=r"one: data.valid_fraction\(0.5\) of its one row leaves"):
        rows_of(run_of(prefix, data={"valid_fraction": 0.5}))


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
