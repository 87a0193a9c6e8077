"""Rows that reset at documents: where these start, and that each is as if it were alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import fork_ranks

GOLDEN = Path(__file__).parents[1] / "contracts" / "arch" / "golden"
SEQ_LENGTH, SAMPLES = 32, 40


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The same samples of one dataset with and without resets.

    Token d·64 + i is the i-th of document d, so that the tokens themselves tell where one ends.
    """
    fork_ranks.warm()
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    folder = tmp_path_factory.mktemp("numbered")
    builder = IndexedDatasetBuilder(f"{folder}/numbered.bin", dtype=np.uint16)
    random = np.random.RandomState(0)
    for document in range(50):
        length = random.randint(1, 60)
        tokens = torch.arange(length) + 64 * document
        builder.add_document(tokens.to(torch.uint16), [length])
    builder.finalize(f"{folder}/numbered.idx")

    def rank(_rank):
        from llm_train.config import DataConfig, TrainConfig
        from llm_train.edge.device import DeviceKind, device_session
        from llm_train.edge.token_dataset import read_facts
        from llm_train.train.data import build_splits

        train = TrainConfig(max_steps=SAMPLES, seq_length=SEQ_LENGTH, global_batch_size=1)
        samples = {}
        with device_session(DeviceKind.CPU):
            for is_reset in (False, True):
                data = DataConfig(train=(folder / "numbered",), reset_documents=is_reset)
                splits = build_splits(
                    data,
                    train,
                    facts=[read_facts(folder / "numbered")],
                    vocab_size=64 * 50,
                    cache_dir=folder / "cache",
                )
                samples[is_reset] = [splits.train[index] for index in range(SAMPLES)]
        return samples

    return fork_ranks.run_ranks(rank, 1)[0]


def test_samples_and_their_order_are_those_without_resets(drawn):
    for plain, reset in zip(drawn[False], drawn[True], strict=True):
        assert torch.equal(plain["tokens"], reset["tokens"])
        assert torch.equal(plain["labels"], reset["labels"])


def test_positions_restart_and_no_label_is_another_documents(drawn):
    found = 0
    for sample in drawn[True]:
        follows = sample["labels"] == sample["tokens"] + 1
        assert torch.equal(sample["loss_mask"], follows.float())
        position = -1
        for index, place in enumerate(sample["position_ids"].tolist()):
            starts = index > 0 and not follows[index - 1]
            position = 0 if starts else position + 1
            assert place == position
            found += starts
    assert found > SAMPLES / 2


def _with_softcap_and_window(document):
    document["attention"]["softcap"] = 3.0
    document["layers"] = [
        {**document["layers"][0], "count": 1, "window": 6},
        {**document["layers"][0], "count": 1},
    ]
    return document


def _two_layers(document):
    document["layers"][0]["count"] = 2
    return document


@pytest.mark.parametrize("change", [_two_layers, _with_softcap_and_window])
def test_logits_of_a_packed_row_are_those_of_each_document_alone(change):
    document = change(json.loads((GOLDEN / "qwen3_tiny.json").read_text()))
    lengths = [[9, 1, 22], [20, 12]]

    def rank(_rank):
        from llm_train.arch import parse
        from llm_train.config import ParallelConfig
        from llm_train.edge.device import DeviceKind, device_session
        from llm_train.edge.groups import model_parallel

        parallel, arch = ParallelConfig(), parse(document, where="test")
        with device_session(DeviceKind.CPU), model_parallel(parallel, seed=1), torch.no_grad():
            from llm_train.model.build import build_chunks, transformer_config
            from llm_train.model.fill import fill_randomly
            from llm_train.model.packed_rows import packed_rows

            chunks = build_chunks(arch, transformer_config(arch, parallel, dtype=torch.float32))
            fill_randomly(chunks, std=0.2, seed=1)
            model = chunks[0].eval()
            positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
            tokens = torch.randint(0, 250, positions.shape)
            packed = packed_rows(positions)
            together = model(tokens, positions, None, packed_seq_params=packed)
            apart = [
                [model(part[None], torch.arange(len(part))[None], None)[0] for part in row.split(n)]
                for row, n in zip(tokens, lengths, strict=True)
            ]
            return packed.starts, together, torch.stack([torch.cat(row) for row in apart])

    ((starts, together, apart),) = fork_ranks.run_ranks(rank, 1)
    assert starts == ((0, 9, 10), (0, 20))
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
