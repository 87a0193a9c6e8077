"""Fine-tuning samples: ids and labels."""

import pickle
import random
from dataclasses import replace

import numpy as np
import pytest

from chat_templates import CHATML, SPACED, TIGHT, of_transformers, rendering
from chat_tokenizers import KINDS, random_text
from llm_data.backends.backend import BackendName, BackendSpec
from llm_data.errors import UsageError
from llm_data.messages import Conversation, Message, Prompt
from llm_data.packing import pack
from llm_data.records import COUNTED, Reason, RecordRefusedError
from llm_data.tasks.chat import Limit, TaskInput
from llm_data.tasks.sft import Loss, SftSpec
from llm_data.tasks.truncation import TooLong
from task_batches import ReadBy, batch_of, rows_of


def _read(body):
    if "refuse" in body:
        raise RecordRefusedError(Reason(body["refuse"]), "as it asks for")
    if "prompt" in body:
        return Prompt(conversation=Conversation(messages=()), extra={})
    turns = (
        Message(role=turn["role"], content=turn["content"], is_trained=turn.get("train", True))
        for turn in body["messages"]
    )
    return Conversation(messages=tuple(turns))


def _spec(tmp_path, kind="byte-level", template=CHATML, **options) -> SftSpec:
    file = tmp_path / "tokenizer.json"
    KINDS[kind]().save(str(file))
    limit = options.pop("limit", Limit())
    source = TaskInput(tokenizer_file=file, samples=ReadBy(_read), dtype="uint16", limit=limit)
    return SftSpec(source=source, rendering=rendering(template), **options)


def _turns(*texts: str, train: tuple[bool, ...] = ()) -> dict[str, object]:
    """A record whose turns are a user's and an assistant's by turns."""
    roles = ["user", "assistant"] * len(texts)
    turns: list[dict[str, object]] = [
        {"role": role, "content": text} for role, text in zip(roles, texts, strict=False)
    ]
    for turn, flag in zip(turns[1::2], train, strict=False):
        turn["train"] = flag
    return {"messages": turns}


def _random_records(count: int) -> list[dict[str, object]]:
    rng = random.Random(7)
    sizes = [2 * rng.randint(1, 4) for _ in range(count)]
    return [_turns(*(random_text(rng).strip() or "x" for _ in range(size))) for size in sizes]


def _theirs(kind, template, record) -> tuple[list[int], list[int]]:
    """Ids and mask as transformers has them."""
    made = of_transformers(KINDS[kind](), template).apply_chat_template(
        record["messages"], return_dict=True, return_assistant_tokens_mask=True
    )
    return made["input_ids"], made["assistant_masks"]


def _labels(ids: list[int], mask: list[int]) -> list[int]:
    found = [number if learned else -100 for number, learned in zip(ids, mask, strict=True)]
    return [-100, *found[1:]]


@pytest.mark.parametrize(
    ("kind", "template"), [(kind, TIGHT) for kind in KINDS] + [("byte-level", CHATML)]
)
def test_ids_and_labels_are_those_of_transformers(tmp_path, kind, template):
    records = _random_records(80)
    spec = _spec(tmp_path, kind, template)
    encoder = pickle.loads(pickle.dumps(spec)).build()
    encoded = encoder(batch_of(*records))
    rows = rows_of(encoded, spec)
    wanted = [_theirs(kind, template, record) for record in records]
    assert rows["input_ids"] == [ids for ids, _ in wanted]
    assert rows["labels"] == [_labels(ids, mask) for ids, mask in wanted]
    assert rows["attention_mask"] == [[1] * len(ids) for ids, _ in wanted]
    assert encoded.rejects == ()
    assert encoded.num_documents == len(records)
    assert encoded.num_tokens == sum(len(ids) for ids, _ in wanted)
    assert encoded.notes == {"truncated": 0, "loss_tokens": sum(sum(mask) for _, mask in wanted)}
    assert np.frombuffer(encoded.sizes, np.int32).tolist() == [1] * len(records)


@pytest.mark.parametrize("kind", ["sentencepiece-prepend", "sentencepiece-first", "unigram"])
def test_the_text_that_is_learned_is_the_answers_and_their_end_tokens(tmp_path, kind):
    """Where a token lies across an answer's border, transformers would learn the prompt's part."""
    tokenizer = KINDS[kind]()
    spec = _spec(tmp_path, kind, SPACED)
    record = _turns("hello world", "answer the fox", "question", "brown jumps")
    (labels,) = rows_of(spec.build()(batch_of(record)), spec)["labels"]
    learned = "".join(tokenizer.id_to_token(n) if n != -100 else "|" for n in labels)
    said = [part.replace("▁", " ") for part in learned.split("|") if part]
    assert said == ["answer the fox</s>", "brown jumps</s>"]


def test_with_mask_history_only_the_last_answer_is_learned(tmp_path):
    record = _turns("hello", "answer", "question", "brown fox")
    spec = _spec(tmp_path, loss=Loss.LAST_ANSWER)
    ids, mask = _theirs("byte-level", CHATML, record)
    end_of_first = max(at for at, learned in enumerate(mask[: len(mask) // 2]) if learned)
    wanted = [0] * (end_of_first + 1) + mask[end_of_first + 1 :]
    rows = rows_of(spec.build()(batch_of(record)), spec)
    assert sum(wanted) == 3
    assert rows["labels"] == [_labels(ids, wanted)]


def test_with_train_on_prompt_all_but_the_first_token_is_learned(tmp_path):
    record = _turns("hello", "answer", "question", "brown fox")
    spec = _spec(tmp_path, loss=Loss.EVERYTHING)
    rows = rows_of(spec.build()(batch_of(record)), spec)
    ids, _ = _theirs("byte-level", CHATML, record)
    assert rows["labels"] == [[-100, *ids[1:]]]


@pytest.mark.parametrize(
    ("loss", "train", "said"),
    [
        (Loss.ANSWERS, (False, True), "brown fox<|im_end|>"),
        (Loss.ANSWERS, (True, False), "answer<|im_end|>"),
        (Loss.LAST_ANSWER, (False, True), "brown fox<|im_end|>"),
        (
            Loss.EVERYTHING,
            (True, False),
            "user\nhello<|im_end|>\n<|im_start|>assistant\nanswer<|im_end|>\n"
            "<|im_start|>user\nquestion<|im_end|>\n<|im_start|>assistant\n\n",
        ),
    ],
)
def test_an_answer_marked_as_not_trained_never_is(tmp_path, loss, train, said):
    record = _turns("hello", "answer", "question", "brown fox", train=train)
    spec = _spec(tmp_path, loss=loss)
    (labels,) = rows_of(spec.build()(batch_of(record)), spec)["labels"]
    learned = [number for number in labels if number != -100]
    assert KINDS["byte-level"]().decode(learned, skip_special_tokens=False) == said


@pytest.mark.parametrize("loss", [Loss.ANSWERS, Loss.LAST_ANSWER])
def test_a_conversation_without_a_trained_answer_is_refused(tmp_path, loss):
    record = _turns("hello", "answer", train=(False,))
    (reject,) = _spec(tmp_path, loss=loss).build()(batch_of(record)).rejects
    assert reject.reason is Reason.NO_TARGET


def test_the_first_token_is_never_learned(tmp_path):
    """An answer that stands first, in a template that writes nothing before answers."""
    bare = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content + '</s>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}"
        "{% endif %}{% endfor %}"
    )
    spec = _spec(tmp_path, template=bare)
    record = {"messages": [{"role": "assistant", "content": "the quick brown"}]}
    rows = rows_of(spec.build()(batch_of(record)), spec)
    ids = KINDS["byte-level"]().encode("the quick brown</s>").ids
    assert len(ids) == 4
    assert rows["labels"] == [[-100, *ids[1:]]]


def test_a_sample_of_seq_length_is_kept_and_a_longer_one_dropped(tmp_path):
    """MindSpeed-LLM drops one of exactly seq-length too; it fits."""
    record = _turns("hello", "answer the question")
    size = len(_theirs("byte-level", CHATML, record)[0])
    for room, kept in ((size, 1), (size - 1, 0)):
        spec = _spec(tmp_path, limit=Limit(seq_length=room))
        encoded = spec.build()(batch_of(record))
        assert encoded.num_documents == kept
        assert [reject.reason for reject in encoded.rejects] == [Reason.TOO_LONG] * (1 - kept)
    assert Reason.TOO_LONG in COUNTED
    assert encoded.rejects[0].detail == f"{size} tokens, want at most --seq-length {size - 1}"


@pytest.mark.parametrize(
    ("loss", "room", "kept", "said"),
    [
        # Turns of 7 + 3 and 8 + 4 tokens. The first is whole, the second has 11, 8, 6 left.
        (Loss.ANSWERS, 21, [*range(17), *range(18, 22)], " the quick</s> the quick brown</s>"),
        (Loss.ANSWERS, 18, [*range(16), 18, 19], " the quick</s> the quick"),
        (Loss.ANSWERS, 16, [*range(14), 18, 19], " the quick</s> the quick"),
        # 5 * 3 // 10 = 1 of the first answer, and nothing of the second turn.
        (Loss.ANSWERS, 5, [0, 1, 2, 3, 7], " the"),
        # The second turn is whole, and 2 * 3 // 10 = 0 of the first answer; or not even that.
        (Loss.LAST_ANSWER, 14, [0, 1, *range(10, 22)], " the quick brown</s>"),
        (Loss.LAST_ANSWER, 10, [*range(10, 16), *range(18, 22)], " the quick brown</s>"),
    ],
)
def test_truncation_takes_from_turns_by_the_rule_and_adds_no_end_token(
    tmp_path, loss, room, kept, said
):
    """Worked out by hand from the rule."""
    answers = " the quick", " the quick brown"
    record = _turns(" hello fox fox fox", answers[0], " hello" * 6, answers[1])
    ids, mask = _theirs("byte-level", TIGHT, record)
    assert [at for at, learned in enumerate(mask) if learned] == [7, 8, 9, 18, 19, 20, 21]
    limit = Limit(seq_length=room, too_long=TooLong.TRUNCATE)
    spec = _spec(tmp_path, template=TIGHT, loss=loss, limit=limit)
    encoded = spec.build()(batch_of(record))
    rows = rows_of(encoded, spec)
    assert rows["input_ids"] == [[ids[at] for at in kept]]
    learned = [number for number in rows["labels"][0] if number != -100]
    assert KINDS["byte-level"]().decode(learned, skip_special_tokens=False) == said
    assert encoded.notes == {"truncated": 1, "loss_tokens": len(learned)}


def test_a_sample_that_truncation_leaves_nothing_to_learn_of_is_a_counted_drop(tmp_path):
    record = _turns("hello " * 500, "answer me hello brown fox")
    limit = Limit(seq_length=8, too_long=TooLong.TRUNCATE)
    encoded = _spec(tmp_path, limit=limit).build()(batch_of(record))
    assert [reject.reason for reject in encoded.rejects] == [Reason.TOO_LONG]
    assert "truncated to 8 tokens" in encoded.rejects[0].detail
    assert encoded.num_documents == encoded.num_tokens == 0


def test_what_is_refused_keeps_its_place_its_reason_and_its_text(tmp_path):
    good = _turns("hello", "answer")
    bad = [
        (b'{"messages": [', Reason.INVALID_JSON),
        (b'["no object"]', Reason.WRONG_TYPE),
        (b'"\xff"', Reason.INVALID_UTF8),
        (b'{"refuse": "unknown_role"}', Reason.UNKNOWN_ROLE),
    ]
    spec = _spec(tmp_path)
    silent = _turns("hello", "answer", train=(False,))
    encoded = spec.build()(batch_of(good, silent, *(raw for raw, _ in bad), good))
    assert encoded.num_documents == 2
    assert [(reject.place.number, reject.reason) for reject in encoded.rejects] == [
        (2, Reason.NO_TARGET),
        *((number, reason) for number, (_, reason) in enumerate(bad, 3)),
    ]
    raws = [reject.raw for reject in encoded.rejects[1:]]
    assert raws == ['{"messages": [', '["no object"]', '"\\xff"', '{"refuse": "unknown_role"}']
    assert encoded.end.number == 7


def test_a_handler_of_another_task_is_a_usage_error(tmp_path):
    encoder = _spec(tmp_path).build()
    with pytest.raises(UsageError, match="gives Prompt, the task wants Conversation"):
        encoder(batch_of({"prompt": 1}))


def test_packed_conversations_whose_turns_end_in_eos_keep_one_border_a_sample(tmp_path):
    """MindSpeed-LLM takes borders from end-of-text ids, and cuts such samples into their turns."""
    tokenizer = KINDS["byte-level"]()
    eos = tokenizer.token_to_id("</s>")
    records = [
        _turns("hello", "answer", "question", "brown fox"),
        _turns("the", "quick", "brown", "fox", "jumps", "good."),
        _turns("user", "assistant"),
    ]
    spec = _spec(tmp_path, template=TIGHT)
    rows = rows_of(spec.build()(batch_of(*records)), spec)
    lengths = np.array([len(ids) for ids in rows["input_ids"]], np.int32)
    assert [ids.count(eos) for ids in rows["input_ids"]] == [2, 3, 1]
    packs = pack(lengths, int(lengths.sum()) + 5)
    (row,) = np.split(packs.order, packs.ends[:-1])
    assert np.cumsum(lengths[row]).tolist() == np.cumsum(lengths).tolist()


def test_gigatoken_gives_the_same_samples(tmp_path):
    """Whole texts, texts that must be cut, and texts that the tokenizer composes first."""
    records = _random_records(60)
    records += [_turns("hello", "nai\u0308ve"), _turns("cafe\u0301", "\nanswer")]
    hf = _spec(tmp_path, template=SPACED)
    fast = replace(hf, backend=BackendSpec(name=BackendName.GIGATOKEN, before=(1,), after=(2,)))
    batch = batch_of(*records)
    wanted, found = hf.build()(batch), fast.build()(batch)
    assert wanted.num_documents == len(records)
    assert found == wanted


def test_a_run_s_first_texts_are_those_it_tokenizes(tmp_path):
    """What a tokenizer backend is compared with before a run."""
    record = _turns("hello", "answer")
    spec = _spec(tmp_path)
    wanted = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nanswer<|im_end|>\n"
    assert spec.first_texts([batch_of(b"broken", record), batch_of(record)]) == [wanted] * 2
    assert len(spec.first_texts([batch_of(*[record] * 100)])) == 64
