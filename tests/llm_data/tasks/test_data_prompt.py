"""Prompts for reinforcement learning."""

import random

import pytest

from chat_templates import CHATML, TIGHT, of_transformers, rendering
from chat_tokenizers import KINDS, random_text
from llm_data.errors import UsageError
from llm_data.messages import Conversation, Message, Prompt
from llm_data.records import Reason
from llm_data.tasks.chat import Limit, TaskInput
from llm_data.tasks.prompt import PromptSpec
from llm_data.tasks.truncation import TooLong
from task_batches import ReadBy, batch_of, rows_of


def _read(body):
    turns = tuple(Message(role=role, content=text) for role, text in body["turns"])
    return Prompt(conversation=Conversation(messages=turns), extra=body.get("extra", {}))


def _spec(tmp_path, kind="byte-level", template=TIGHT, **options) -> PromptSpec:
    file = tmp_path / "tokenizer.json"
    KINDS[kind]().save(str(file))
    limit = options.pop("limit", Limit())
    source = TaskInput(tokenizer_file=file, samples=ReadBy(_read), dtype="uint16", limit=limit)
    return PromptSpec(source=source, rendering=rendering(template), **options)


def _theirs(kind, template, record) -> list[int]:
    turns = [{"role": role, "content": text} for role, text in record["turns"]]
    return of_transformers(KINDS[kind](), template).apply_chat_template(
        turns, add_generation_prompt=True, return_dict=True
    )["input_ids"]


@pytest.mark.parametrize("template", [TIGHT, CHATML])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers_asked_for_an_answer(tmp_path, kind, template):
    rng = random.Random(5)
    roles = ["user", "assistant"] * 3
    records = [
        {"turns": [[role, random_text(rng)] for role in roles[: 2 * rng.randint(0, 2) + 1]]}
        for _ in range(40)
    ]
    spec = _spec(tmp_path, kind, template)
    encoded = spec.build()(batch_of(*records))
    rows = rows_of(encoded, spec)
    wanted = [_theirs(kind, template, record) for record in records]
    assert rows["input_ids"] == wanted
    assert rows["attention_mask"] == [[1] * len(ids) for ids in wanted]
    assert encoded.num_tokens == sum(map(len, wanted))
    assert encoded.notes == {"truncated": 0, "loss_tokens": 0}


def test_further_columns_are_sorted_and_hold_their_text_alone(tmp_path):
    spec = _spec(tmp_path, extra=("labels", "answer"))
    records = [
        {"turns": [["user", "hello"]], "extra": {"labels": "the fox", "answer": "12345"}},
        {"turns": [["user", "hello"]], "extra": {"labels": "", "answer": "brown", "more": "x"}},
    ]
    rows = rows_of(spec.build()(batch_of(*records)), spec)
    assert list(rows) == ["input_ids", "attention_mask", "answer", "labels"]
    tokenizer = KINDS["byte-level"]()
    assert rows["answer"] == [tokenizer.encode("12345").ids, tokenizer.encode("brown").ids]
    assert rows["labels"] == [tokenizer.encode("the fox").ids, []]


def test_a_record_without_a_further_column_is_refused(tmp_path):
    spec = _spec(tmp_path, extra=("answer",))
    record = {"turns": [["user", "hello"]], "extra": {"answers": "x"}}
    (reject,) = spec.build()(batch_of(record)).rejects
    assert reject.reason is Reason.MISSING_KEY
    assert "no 'answer' for the columns asked for; the record gives answers" in reject.detail


@pytest.mark.parametrize("extra", [("input_ids",), ("a/b",), ("",), ("a", "a")])
def test_further_columns_must_have_names_of_their_own(tmp_path, extra):
    with pytest.raises(UsageError, match="want distinct names without '/'"):
        _spec(tmp_path, extra=extra)


def test_a_prompt_that_is_too_long_is_dropped_or_keeps_its_end(tmp_path):
    record = {"turns": [["user", "hello the quick brown fox"]]}
    ids = _theirs("byte-level", TIGHT, record)
    dropped = _spec(tmp_path, limit=Limit(seq_length=len(ids) - 1)).build()(batch_of(record))
    assert [reject.reason for reject in dropped.rejects] == [Reason.TOO_LONG]
    spec = _spec(tmp_path, limit=Limit(seq_length=3, too_long=TooLong.TRUNCATE))
    encoded = spec.build()(batch_of(record))
    assert rows_of(encoded, spec)["input_ids"] == [ids[-3:]]
    assert encoded.notes["truncated"] == 1
