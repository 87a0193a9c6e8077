"""Chat records to ids and labels: llm-data's encoder against transformers, record by record.

All sides get the same lines of JSON (ShareGPT form, one to four turns each), the same tokenizer
(byte-level BPE trained here) and the same ChatML template with marked answers, on one thread. The
peer is the loop that `datasets.map` runs: `apply_chat_template` with
`return_assistant_tokens_mask`, a list of labels, an array. Every id and label is compared.

    .venv/bin/python benchmarks/sft_preprocess.py --records 20000 --rounds 3
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pydoc_data import topics
from typing import TypeVar

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from llm_data.backends.backend import BackendName, BackendSpec
from llm_data.config import Task
from llm_data.encode import EncodedBatch
from llm_data.records import Batch, Place, Record, Shape
from llm_data.samples.columns import Format
from llm_data.samples.spec import SampleSpec
from llm_data.tasks.chat import Rendering, TaskInput
from llm_data.tasks.sft import SftSpec
from llm_data.templates import SpecialTokens, TemplateSource

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ROLES = {"human": "user", "gpt": "assistant"}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BATCH_RECORDS = 512
BATCH_BYTES = 256 << 10

Made = TypeVar("Made")
Rows = list[tuple[np.ndarray, np.ndarray]]


def make_texts() -> list[str]:
    """Paragraphs of English and code: the language reference that comes with Python."""
    return [part for text in topics.topics.values() for part in text.split("\n\n") if part.strip()]


def make_lines(texts: list[str], count: int) -> list[bytes]:
    """Records as lines: questions of one paragraph, answers of one to three."""
    rng = random.Random(1)
    lines = []
    for _ in range(count):
        turns = []
        for _ in range(rng.randint(1, 4)):
            turns.append({"from": "human", "value": rng.choice(texts).strip()})
            answer = "\n\n".join(rng.choices(texts, k=rng.randint(1, 3)))
            turns.append({"from": "gpt", "value": answer.strip()})
        lines.append(json.dumps({"conversations": turns}).encode())
    return lines


def train(texts: list[str]) -> Tokenizer:
    """A vocabulary of 16,384, split as Qwen2 splits."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=16384,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def make_spec(folder: Path, tokenizer: Tokenizer) -> SftSpec:
    """Ours."""
    tokenizer.save(str(folder / "tokenizer.json"))
    return SftSpec(
        source=TaskInput(
            tokenizer_file=folder / "tokenizer.json",
            samples=SampleSpec(task=Task.SFT, format=Format.SHAREGPT),
            dtype="uint16",
        ),
        rendering=Rendering(
            template=TemplateSource(name="chatml", text=CHATML),
            special=SpecialTokens(bos=None, eos="<|im_end|>"),
        ),
    )


def make_batches(lines: list[bytes]) -> list[Batch]:
    """The batches that the readers would make."""
    batches: list[Batch] = []
    items: list[Record] = []
    for number, line in enumerate(lines, 1):
        items.append(Record(Place(0, number, number), Shape.JSON, line))
        size = sum(len(item.payload) for item in items)
        if len(items) >= BATCH_RECORDS or size >= BATCH_BYTES or number == len(lines):
            batches.append(Batch(items=items, payload_bytes=size))
            items = []
    return batches


def theirs(lines: list[bytes], tokenizer: PreTrainedTokenizerFast) -> Rows:
    """Record by record, as a function for `datasets.map` is written."""
    rows = []
    for line in lines:
        turns = json.loads(line)["conversations"]
        messages = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in turns]
        made = tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = made["input_ids"], made["assistant_masks"]
        labels = [n if learned else -100 for n, learned in zip(ids, mask, strict=True)]
        rows.append((np.array(ids, np.uint16), np.array(labels, np.int32)))
    return rows


def rows_of(batches: list[EncodedBatch]) -> Rows:
    """Our columns cut into rows."""
    rows: Rows = []
    for batch in batches:
        assert not batch.rejects, batch.rejects[0]
        ends = np.cumsum(np.frombuffer(batch.columns[0].lengths, np.int32))[:-1]
        ids = np.split(np.frombuffer(batch.columns[0].tokens, np.uint16), ends)
        labels = np.split(np.frombuffer(batch.columns[2].tokens, np.int32), ends)
        rows += zip(ids, labels, strict=True)
    return rows


def timed(run: Callable[[], Made]) -> tuple[float, Made]:
    """Seconds of this process's processor time, and what was made."""
    start = time.process_time()
    made = run()
    return time.process_time() - start, made


def main() -> None:
    """Run both in turn, compare every token, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    texts = make_texts()
    lines = make_lines(texts, options.records)
    batches = make_batches(lines)
    tokenizer = train(texts)
    peer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHATML)
    with tempfile.TemporaryDirectory() as folder:
        spec = make_spec(Path(folder), tokenizer)
        encoders = {
            f"llm-data, {name.value}": replace(spec, backend=BackendSpec(name=name)).build()
            for name in BackendName
        }
    times: dict[str, list[float]] = {name: [] for name in ("transformers", *encoders)}
    for _ in range(options.rounds):
        took, wanted = timed(lambda: theirs(lines, peer))
        times["transformers"].append(took)
        for name, encode in encoders.items():
            took, made = timed(lambda encode=encode: [encode(batch) for batch in batches])
            times[name].append(took)
            check_equal(rows_of(made), wanted)
    report(times, wanted)


def check_equal(ours: Rows, wanted: Rows) -> None:
    """Every id and every label."""
    for (ids, labels), (their_ids, their_labels) in zip(ours, wanted, strict=True):
        assert np.array_equal(ids, their_ids)
        assert np.array_equal(labels, their_labels)


def report(times: dict[str, list[float]], rows: Rows) -> None:
    """The table, the first side being the one compared with."""
    tokens = sum(len(ids) for ids, _ in rows)
    learned = sum(int((labels != -100).sum()) for _, labels in rows)
    print(f"{len(rows):,} records, {tokens:,} tokens, {learned:,} learned; all equal\n")
    peer = statistics.median(next(iter(times.values())))
    rounds = len(next(iter(times.values())))
    print(f"| side | CPU s, median of {rounds} | spread | records/s | tokens/s | ratio |")
    print("|---|---|---|---|---|---|")
    for name, found in times.items():
        median = statistics.median(found)
        print(
            f"| {name} | {median:.2f} | {min(found):.2f} to {max(found):.2f} "
            f"| {len(rows) / median:,.0f} | {tokens / median:,.0f} | {peer / median:.2f}x |"
        )


if __name__ == "__main__":
    main()
