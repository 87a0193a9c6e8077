"""Packed conversations through a whole run: where samples begin and end."""

import json

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDataset

from chat_templates import TIGHT, of_transformers
from chat_tokenizers import KINDS
from llm_data import api
from llm_data.config import Task

SEQ_LENGTH = 64
TEXTS = ("hello", "answer", "question", "brown fox", "the quick", "jumps", "good.", "12345")


def _records() -> list[dict[str, object]]:
    """Conversations of one to four turns, so that most hold several end-of-text tokens."""
    records = []
    for number in range(60):
        texts = [TEXTS[(number + at) % len(TEXTS)] for at in range(2 * (number % 4 + 1))]
        roles = ["user", "assistant"] * len(texts)
        turns = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
        records.append({"messages": turns})
    return records


def test_packed_turns_that_end_in_eos_keep_one_border_a_sample(tmp_path):
    """MindSpeed-LLM takes a row's borders from its end-of-text ids and cuts samples into turns.

    Expected ids are transformers', rows are read by megatron-core.
    """
    tokenizer = KINDS["byte-level"]()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    names = {"eos_token": "</s>", "bos_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    (tmp_path / "tight.jinja").write_text(TIGHT)
    records = _records()
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    api.preprocess(
        api.PreprocessConfig(
            inputs=[tmp_path / "chats.jsonl"],
            tokenizer=tmp_path,
            output=tmp_path / "out" / "train",
            task=Task.SFT,
            format="openai",
            template=str(tmp_path / "tight.jinja"),
            seq_length=SEQ_LENGTH,
            pack=True,
        )
    )
    prefix = tmp_path / "out" / "train_packed"
    ids, labels, masks = (
        IndexedDataset(f"{prefix}_{name}_document")
        for name in ("input_ids", "labels", "attention_mask")
    )
    borders = IndexedDataset(f"{prefix}_cu_seqlens")
    eos = tokenizer.token_to_id("</s>")
    theirs = of_transformers(tokenizer, TIGHT)
    samples, ends = [], 0
    for row in range(len(ids)):
        assert len(ids[row]) == SEQ_LENGTH
        assert (labels[row][borders[row][-1] :] == -100).all()
        for number, (start, end) in enumerate(zip(borders[row], borders[row][1:], strict=False), 1):
            samples.append(ids[row][start:end].tolist())
            ends += samples[-1].count(eos)
            assert (masks[row][start:end] == number).all()
            assert labels[row][start] == -100
    wanted = [
        theirs.apply_chat_template(record["messages"], return_dict=True)["input_ids"]
        for record in records
    ]
    assert sorted(samples) == sorted(wanted)
    assert len(samples) == len(records)
    assert ends == sum(number % 4 + 1 for number in range(60)) > 2 * len(samples)
    assert sum(int(np.sum(labels[row] == eos)) for row in range(len(ids))) == ends
