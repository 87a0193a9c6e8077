"""Runs of every chat task from files to datasets, against transformers, whatever kills them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from chat_templates import CHATML, of_transformers
from chat_tokenizers import byte_level, random_text
from llm_data.config import OnError, PreprocessConfig, Task
from llm_data.edge.datasets.sample_dataset import open_sample_dataset, verify_samples
from llm_data.edge.datasets.spool import Spool
from llm_data.edge.runs import packing
from llm_data.edge.runs.pipeline import preprocess
from llm_data.edge.sources import readers, text_files
from llm_data.errors import DataError

ROLES = {"user": "human", "assistant": "gpt"}
SEQ_LENGTH = 128


def conversations(count: int) -> list[list[dict[str, str]]]:
    """Of one to four exchanges, in OpenAI's form."""
    rng = random.Random(5)
    return [
        [
            {"role": role, "content": f"{number} {random_text(rng)}"}
            for _ in range(rng.randint(1, 4))
            for role in ROLES
        ]
        for number in range(count)
    ]


def sharegpt(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"from": ROLES[each["role"]], "value": each["content"]} for each in messages]


def write(path: Path, records: list[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def chat_tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    of_transformers(byte_level(), CHATML).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chats() -> list[list[dict[str, str]]]:
    return conversations(300)


@pytest.fixture
def config(chat_tokenizer, chats, tmp_path) -> PreprocessConfig:
    template = tmp_path / "own.jinja"
    template.write_text(CHATML)
    records = [{"conversations": sharegpt(messages)} for messages in chats]
    return PreprocessConfig(
        inputs=[write(tmp_path / "chats.jsonl", records)],
        tokenizer=chat_tokenizer,
        output=tmp_path / "out" / "train",
        task=Task.SFT,
        template=str(template),
        workers=1,
    )


@pytest.fixture
def packed(config, monkeypatch) -> PreprocessConfig:
    """Many windows of few rows."""
    monkeypatch.setattr(packing, "WINDOW_TOKENS", 8 * SEQ_LENGTH)
    monkeypatch.setattr(packing, "WINDOW_ROWS", 1)
    return replace(config, pack=True, seq_length=SEQ_LENGTH)


def outputs(config: PreprocessConfig) -> dict[str, bytes]:
    """Every file of a dataset."""
    start = f"{config.output.name}_packed"
    return {
        path.name.removeprefix(start): path.read_bytes() if path.is_file() else b""
        for path in sorted(config.output.parent.iterdir())
        if path.name.startswith(start)
    }


def elsewhere(config: PreprocessConfig, name: str, **changes: object) -> PreprocessConfig:
    return replace(config, output=config.output.parent.with_name(name) / "train", **changes)


def column(config: PreprocessConfig, name: str) -> list[list[int]]:
    """A column as megatron-core reads it."""
    dataset = IndexedDataset(f"{config.output}_packed_{name}_document")
    return [dataset[i].tolist() for i in range(len(dataset))]


def by_transformers(chats) -> list[tuple[list[int], list[int]]]:
    """Ids, and labels where transformers' mask marks an assistant's token."""
    reference = of_transformers(byte_level(), CHATML)
    found = reference.apply_chat_template(
        chats, return_assistant_tokens_mask=True, return_dict=True, tokenize=True
    )
    return [
        (ids, [token if learned else -100 for token, learned in zip(ids, mask, strict=True)])
        for ids, mask in zip(found["input_ids"], found["assistant_masks"], strict=True)
    ]


def test_fine_tuning_columns_are_what_transformers_gives(config, chats):
    result = preprocess(config)
    ids, labels = column(config, "input_ids"), column(config, "labels")
    assert list(zip(ids, labels, strict=True)) == by_transformers(chats)
    assert column(config, "attention_mask") == [[1] * len(row) for row in ids]
    manifest = verify_samples(config.output).manifest
    assert manifest == result.manifest
    learned = sum(label != -100 for row in labels for label in row)
    assert (manifest.num_loss_tokens, manifest.num_tokens) == (learned, sum(map(len, ids)))


def test_packed_rows_hold_every_short_sample_once_one_boundary_each(packed, chats):
    """A sample of several answers ends in several end-of-text ids: boundaries are not those."""
    manifest = preprocess(packed).manifest
    verify_samples(packed.output)
    dataset = open_sample_dataset(packed.output)
    cut = []
    for number in range(len(dataset)):
        row, ends = dataset.row(number), dataset.boundaries(number).tolist()
        cut += [
            (row["input_ids"][a:b].tolist(), row["labels"][a:b].tolist()) for a, b in pairwise(ends)
        ]
    every = by_transformers(chats)
    wanted = [sample for sample in every if len(sample[0]) <= SEQ_LENGTH]
    assert sorted(cut) == sorted(wanted)
    assert manifest.num_samples == len(wanted) > manifest.num_rows > 10
    assert manifest.drops == {"too_long": len(every) - len(wanted)}
    assert manifest.drops["too_long"] > 0


@pytest.mark.parametrize(("kind", "workers"), [("config", 2), ("packed", 3)])
def test_workers_do_not_change_a_byte(request, kind, workers):
    config = request.getfixturevalue(kind)
    preprocess(config)
    several = elsewhere(config, "several", workers=workers)
    preprocess(several)
    assert outputs(several) == outputs(config)


def test_preferences_share_a_prompt_that_is_not_learned(config, chats, tmp_path):
    answers = [(f"good {n} é", f"bad {n}") for n in range(len(chats))]
    records = [
        {
            "conversations": sharegpt(messages[:-1]),
            "chosen": {"from": "gpt", "value": good},
            "rejected": {"from": "gpt", "value": bad},
        }
        for messages, (good, bad) in zip(chats, answers, strict=True)
    ]
    pairs = replace(config, inputs=[write(tmp_path / "pairs.jsonl", records)], task=Task.PAIRWISE)
    preprocess(pairs)
    verify_samples(pairs.output)
    reference = of_transformers(byte_level(), CHATML)
    for side, which in (("chosen", 0), ("rejected", 1)):
        whole = [
            [*messages[:-1], {"role": "assistant", "content": both[which]}]
            for messages, both in zip(chats, answers, strict=True)
        ]
        wanted = reference.apply_chat_template(whole, return_dict=False)
        assert column(pairs, f"{side}_input_ids") == wanted
        ends = reference(
            [f"{both[which]}<|im_end|>" for both in answers], add_special_tokens=False
        ).input_ids
        learned = [
            [label for label in row if label != -100] for row in column(pairs, f"{side}_labels")
        ]
        assert learned == ends


def test_prompts_end_where_the_answer_begins_and_carry_further_columns(config, chats, tmp_path):
    records = [
        {"conversations": sharegpt(messages), "source": f"book {number}"}
        for number, messages in enumerate(chats)
    ]
    inputs = [write(tmp_path / "prompts.jsonl", records)]
    prompts = replace(config, inputs=inputs, task=Task.PROMPT, extra_keys=("source",))
    preprocess(prompts)
    verify_samples(prompts.output)
    reference = of_transformers(byte_level(), CHATML)
    wanted = reference.apply_chat_template(
        [messages[:-1] for messages in chats], add_generation_prompt=True, return_dict=False
    )
    assert column(prompts, "input_ids") == wanted
    sources = [f"book {number}" for number in range(len(chats))]
    assert column(prompts, "source") == reference(sources, add_special_tokens=False).input_ids


def test_step_rewards_are_labels_of_the_placeholders(config, tmp_path):
    steps = [["<s>", "</s>", "<s>"][: 1 + n % 3] for n in range(40)]
    records = [
        {"input": "".join(f"step {i}<|im_end|>" for i in range(len(values))), "value": values}
        for values in steps
    ]
    rewards = replace(
        config,
        inputs=[write(tmp_path / "steps.jsonl", records)],
        task=Task.PRM,
        template=None,
        placeholder_token="<|im_end|>",
        reward_tokens=("<s>", "</s>"),
    )
    preprocess(rewards)
    verify_samples(rewards.output)
    vocabulary = byte_level().get_vocab()
    found = [[label for label in row if label != -100] for row in column(rewards, "labels")]
    assert found == [[vocabulary[value] for value in values] for values in steps]


def test_bad_records_are_named_counted_and_set_aside(config, chats, tmp_path):
    good = {"conversations": sharegpt(chats[0])}
    bad = {
        2: ("unknown_role", {"conversations": [{"from": "alien", "value": "x"}]}),
        4: ("wrong_turns", {"conversations": sharegpt(chats[0])[:1]}),
        5: ("missing_key", {"conversation": []}),
        7: ("wrong_type", {"conversations": [{"from": "human", "value": 5}]}),
    }
    records = [bad[n][1] if n in bad else good for n in range(1, 9)]
    path = write(tmp_path / "some.jsonl", records)
    with pytest.raises(DataError, match=r"some\.jsonl: line 2: "):
        preprocess(replace(config, inputs=[path]))
    result = preprocess(replace(config, inputs=[path], on_error=OnError.SKIP))
    assert result.manifest.num_samples == 4
    assert result.manifest.drops == {reason: 1 for reason, _ in bad.values()}
    rejects = Path(f"{config.output}_packed.rejects.jsonl").read_text().splitlines()
    found = {json.loads(line)["number"]: json.loads(line)["reason"] for line in rejects}
    assert found == {number: reason for number, (reason, _) in bad.items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mask_history": True}, "mask-history was False, is True"),
        ({"seq_length": 64}, "seq-length was None, is 64"),
        ({"thinking": "off"}, "thinking was keep, is off"),
        ({"dtype": "int32"}, "columns was input_ids uint16"),
        ({"template": "chatml"}, "template was own"),
        ({"map_keys": {"system": ""}}, "map-keys was {}, is "),
    ],
)
def test_another_option_that_decides_tokens_is_another_run(config, change, says):
    preprocess(config)
    with pytest.raises(DataError) as error:
        preprocess(replace(config, **change))
    assert says in str(error.value)


# Small batches and windows, because a test cannot wait for large ones; and a pause after each
# state, so that a kill hits what it aims at.
_SMALL = f"""
import time
from llm_data.cli import main
from llm_data.edge.runs import packing
from llm_data.edge.sources import readers, text_files
from llm_data.edge.runs.run_folder import RunFolder

def slow(self, state, save=RunFolder.save):
    save(self, state)
    time.sleep(0.01)

RunFolder.save = slow
packing.WINDOW_TOKENS, packing.WINDOW_ROWS = {8 * SEQ_LENGTH}, 1
readers.BATCH_RECORDS, text_files.BLOCK_BYTES = 1, 4096
main()
"""


def start(config: PreprocessConfig, *, workers: int) -> subprocess.Popen:
    command = [
        *(sys.executable, "-c", _SMALL, "preprocess", *map(str, config.inputs)),
        *("--tokenizer", str(config.tokenizer), "--output", str(config.output)),
        *("--task", "sft", "--template", str(config.template), "--workers", str(workers)),
        *("--chunk-mib", "0.0001"),
    ]
    if config.pack:
        command += ["--pack", "--seq-length", str(config.seq_length)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BATCH_RECORDS", 1)
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 4096)


@pytest.mark.parametrize(("kind", "workers"), [("config", 2), ("packed", 1)])
def test_kills_at_random_points_do_not_change_a_byte(request, monkeypatch, kind, workers):
    """Killed twice, each after the state has moved on by a random number of steps."""
    small_batches(monkeypatch)
    config = request.getfixturevalue(kind)
    whole = elsewhere(config, "whole", chunk_bytes=1)
    preprocess(whole)
    rng, kills = random.Random(workers), 0
    progress = Path(f"{config.stem}.parts/progress.json")
    for _ in range(2):
        process = start(config, workers=workers)
        steps, before = rng.randint(1, 6), _changed(progress)
        while steps and process.poll() is None:
            now = _changed(progress)
            steps -= now != before
            before = now
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills, "every run was done before it was killed"
    preprocess(replace(config, chunk_bytes=1))
    assert outputs(config) == outputs(whole)


def _changed(progress: Path) -> int | None:
    try:
        return os.stat(progress).st_mtime_ns
    except FileNotFoundError:
        return None


@pytest.mark.parametrize("writes", [3, 35, 80])
def test_a_full_disk_names_the_place_and_the_run_can_go_on(packed, monkeypatch, writes):
    """Writing fails after so many appends: while reading, early and late while packing."""
    small_batches(monkeypatch)
    whole = elsewhere(packed, "whole")
    preprocess(whole)
    append, left = Spool.append, writes

    def failing(self, *arguments, **options):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        append(self, *arguments, **options)

    monkeypatch.setattr(Spool, "append", failing)
    with pytest.raises(DataError, match=r"_packed\.parts: No space left on device; what is done"):
        preprocess(replace(packed, chunk_bytes=1))
    assert list(outputs(packed)) == [".parts"]
    monkeypatch.setattr(Spool, "append", append)
    preprocess(packed)
    assert outputs(packed) == outputs(whole)
