"""Sample datasets that `preprocess` writes, against the SPEC and megatron-core's reader."""

import json

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from llm_data.config import PreprocessConfig, Task
from llm_data.edge.datasets.sample_dataset import verify_samples
from llm_data.edge.runs.pipeline import preprocess
from llm_data.packing import pack

CHAT = [
    {"instruction": f"question {i} " + "why " * (i % 7), "input": "", "output": "é" * (1 + i % 40)}
    for i in range(60)
]
PAIRS = [
    {"instruction": f"q{i}", "input": "", "chosen": "good " * (1 + i % 5), "rejected": "bad"}
    for i in range(20)
]
STEPS = [{"input": "one # two #" + " and" * i, "value": ["+", "-"]} for i in range(10)]

KINDS = {
    "sft": (CHAT, {"task": Task.SFT, "template": "chatml"}),
    "sft_packed": (CHAT, {"task": Task.SFT, "template": "chatml", "seq_length": 512, "pack": True}),
    "pairwise": (PAIRS, {"task": Task.PAIRWISE, "template": "chatml"}),
    "prompt": (CHAT, {"task": Task.PROMPT, "template": "chatml", "extra_keys": ["output"]}),
    "prm": (STEPS, {"task": Task.PRM, "placeholder_token": "#"}),
}


@pytest.fixture
def run(tmp_path, bytes_tokenizer):
    """A run of one kind on its records; the prefix it wrote."""

    def of(kind, **changes):
        records, options = KINDS[kind]
        source = tmp_path / "records.jsonl"
        source.write_text("".join(json.dumps(record) + "\n" for record in records))
        prefix = tmp_path / "-".join([kind, *changes]) / "data"
        prefix.parent.mkdir()
        options = {"tokenizer": bytes_tokenizer, "output": prefix, "workers": 1, **options}
        preprocess(PreprocessConfig(inputs=[source], **{**options, **changes}))
        return prefix

    return of


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_passes_the_verifier_and_megatron_reads_its_columns(run, kind):
    prefix = run(kind)
    dataset = verify_samples(prefix)
    assert dataset.manifest.num_samples == len(KINDS[kind][0])
    for name, ending in dataset.manifest.pairs.items():
        megatron = IndexedDataset(f"{prefix}{ending}")
        ours = dataset.columns.get(name, dataset.boundaries_of_rows)
        assert len(megatron) == len(dataset)
        for number in range(len(dataset)):
            np.testing.assert_array_equal(megatron[number], ours.sequence(number))


def test_packed_rows_hold_the_samples_of_the_unpacked_run_where_pack_puts_them(run):
    alone = verify_samples(run("sft"))
    packed = verify_samples(run("sft_packed"))
    lengths = np.array([len(alone.row(i)["input_ids"]) for i in range(len(alone))], np.int32)
    packs = pack(lengths, 512)
    for number, members in enumerate(np.split(packs.order, packs.ends[:-1])):
        ends = packed.boundaries(number)
        row = packed.row(number)
        assert len(ends) == len(members) + 1
        for member, start, end in zip(members, ends[:-1], ends[1:], strict=True):
            sample = alone.row(int(member))
            for name in ("input_ids", "labels"):
                np.testing.assert_array_equal(row[name][start:end], sample[name])
