"""Preferences: two answers to one prompt."""

import random

import pytest

from chat_templates import CHATML, SPACED, TIGHT, of_transformers, rendering
from chat_tokenizers import KINDS, random_text
from llm_data.messages import Conversation, Message, Preference
from llm_data.records import Reason
from llm_data.tasks.chat import Limit, TaskInput
from llm_data.tasks.pairwise import PairwiseSpec
from llm_data.tasks.truncation import TooLong
from task_batches import ReadBy, batch_of, rows_of

SIDES = ("chosen", "rejected")


def _read(body):
    turns = tuple(Message(role=role, content=text) for role, text in body["prompt"])
    return Preference(
        prompt=Conversation(messages=turns),
        chosen=Message(role="assistant", content=body["chosen"]),
        rejected=Message(role="assistant", content=body["rejected"]),
    )


def _spec(tmp_path, kind="byte-level", template=TIGHT, limit=Limit()) -> PairwiseSpec:  # noqa: B008
    file = tmp_path / "tokenizer.json"
    KINDS[kind]().save(str(file))
    source = TaskInput(tokenizer_file=file, samples=ReadBy(_read), dtype="uint16", limit=limit)
    return PairwiseSpec(source=source, rendering=rendering(template))


def _record(*prompt: str, chosen: str, rejected: str) -> dict[str, object]:
    roles = ["user", "assistant"] * len(prompt)
    turns = [list(pair) for pair in zip(roles, prompt, strict=False)]
    return {"prompt": turns, "chosen": chosen, "rejected": rejected}


def _theirs(kind, template, record, side) -> tuple[list[int], list[int]]:
    """Ids and mask of one side as transformers has them, only the last answer in the mask."""
    turns = [{"role": role, "content": text} for role, text in record["prompt"]]
    turns.append({"role": "assistant", "content": record[side]})
    tokenizer = of_transformers(KINDS[kind](), template)
    made = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = made["input_ids"], made["assistant_masks"]
    last = max(at for at, learned in enumerate(mask) if not learned and any(mask[at:]))
    return ids, [0] * (last + 1) + mask[last + 1 :]


@pytest.mark.parametrize(
    ("kind", "template"), [(kind, TIGHT) for kind in KINDS] + [("byte-level", CHATML)]
)
def test_both_sides_are_those_of_transformers_with_the_last_answer_learned(
    tmp_path, kind, template
):
    rng = random.Random(3)
    records = []
    for _ in range(40):
        texts = [random_text(rng).strip() or "x" for _ in range(2 * rng.randint(1, 3) + 1)]
        records.append(_record(*texts[:-2], chosen=texts[-2], rejected=texts[-1]))
    spec = _spec(tmp_path, kind, template)
    encoded = spec.build()(batch_of(*records))
    rows = rows_of(encoded, spec)
    assert list(rows) == [f"{side}_{what}" for side in SIDES for what in ("input_ids", "labels")]
    learned = 0
    for side in SIDES:
        wanted = [_theirs(kind, template, record, side) for record in records]
        assert rows[f"{side}_input_ids"] == [ids for ids, _ in wanted]
        assert rows[f"{side}_labels"] == [
            [n if flag else -100 for n, flag in zip(ids, mask, strict=True)] for ids, mask in wanted
        ]
        learned += sum(sum(mask) for _, mask in wanted)
    assert encoded.notes == {"truncated": 0, "loss_tokens": learned}
    assert encoded.num_tokens == sum(map(len, rows["chosen_input_ids"]))


def _prompts(rows: dict[str, list[list[int]]]) -> list[list[int]]:
    """What comes before the first label of either side."""
    found = []
    for side in SIDES:
        (ids,), (labels,) = rows[f"{side}_input_ids"], rows[f"{side}_labels"]
        found.append(ids[: next(at for at, label in enumerate(labels) if label != -100)])
    return found


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "word-piece"])
def test_an_answer_joined_to_the_prompt_is_cut_off_it(tmp_path, kind):
    """The space before the answers joins one of them, and not the other."""
    spec = _spec(tmp_path, kind, SPACED)
    encoded = spec.build()(batch_of(_record("question", chosen="answer", rejected="\nbrown")))
    chosen, rejected = _prompts(rows_of(encoded, spec))
    assert chosen == rejected == KINDS[kind]().encode("<s>[INST] question [/INST] ").ids


def test_the_prompt_has_the_same_tokens_before_both_answers(tmp_path):
    """Two spaces are one token before a line's end and two before a sign that joins neither; the
    other answer takes the second of them into its first word.
    """
    tokenizer = KINDS["byte-level"]()
    assert tokenizer.encode("x  @").tokens == ["x", "Ġ", "Ġ", "@"]
    assert tokenizer.encode("x  fox").tokens == ["x", "Ġ", "Ġfox"]
    spec = _spec(tmp_path, template=SPACED.replace("' '", "'  '"))
    encoded = spec.build()(batch_of(_record("question", chosen="@", rejected="fox")))
    chosen, rejected = _prompts(rows_of(encoded, spec))
    assert chosen == rejected == tokenizer.encode("<s>[INST] question [/INST]  ").ids


def test_a_prompt_that_depends_on_the_answer_is_refused(tmp_path):
    turncoat = "{{ messages[-1].content[0] }}" + TIGHT
    (reject,) = (
        _spec(tmp_path, template=turncoat)
        .build()(batch_of(_record("hello", chosen="a", rejected="b")))
        .rejects
    )
    assert reject.reason is Reason.UNPROVEN_MASK
    assert "another prompt before the other answer" in reject.detail


@pytest.mark.parametrize("side", SIDES)
def test_a_pair_is_dropped_if_either_side_is_too_long(tmp_path, side):
    other = {"chosen": "rejected", "rejected": "chosen"}[side]
    record = _record("hello", **{side: "the quick brown fox", other: "the"})
    size = len(_theirs("byte-level", TIGHT, record, side)[0])
    for room, kept in ((size, 1), (size - 1, 0)):
        encoded = _spec(tmp_path, limit=Limit(seq_length=room)).build()(batch_of(record))
        assert encoded.num_documents == kept
        assert [reject.reason for reject in encoded.rejects] == [Reason.TOO_LONG] * (1 - kept)


@pytest.mark.parametrize(
    ("room", "prompt", "chosen", "rejected"),
    [
        # Prompt 7, answers 4 and 2 tokens with their end. 4 * 2 < 10: the answers stay whole.
        (10, 6, 4, 2),
        # 8 * 4 // 11 = 2: the rejected answer still fits.
        (8, 6, 2, 2),
        # 4 * 4 // 11 = 1.
        (4, 3, 1, 1),
    ],
)
def test_truncation_weighs_the_prompt_against_the_longer_answer(
    tmp_path, room, prompt, chosen, rejected
):
    """Worked out by hand from the rule, with the longer answer's length for both."""
    record = _record(" hello fox fox fox", chosen=" the quick brown", rejected=" fox")
    limit = Limit(seq_length=room, too_long=TooLong.TRUNCATE)
    spec = _spec(tmp_path, limit=limit)
    encoded = spec.build()(batch_of(record))
    rows = rows_of(encoded, spec)
    assert encoded.notes["truncated"] == 1
    for side, size in (("chosen", chosen), ("rejected", rejected)):
        ids, mask = _theirs("byte-level", TIGHT, record, side)
        assert mask.index(1) == 7
        answer = ids[7 : 7 + size]
        assert rows[f"{side}_input_ids"] == [ids[:prompt] + answer]
        assert rows[f"{side}_labels"] == [[-100] * prompt + answer]


def test_a_pair_that_truncation_leaves_without_an_answer_is_a_counted_drop(tmp_path):
    record = _record("hello " * 300, chosen=" the quick brown", rejected=" fox")
    limit = Limit(seq_length=4, too_long=TooLong.TRUNCATE)
    encoded = _spec(tmp_path, limit=limit).build()(batch_of(record))
    assert [reject.reason for reject in encoded.rejects] == [Reason.TOO_LONG]
