"""Process rewards: labels at the placeholders."""

import pickle
from functools import cache

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from llm_data.errors import UsageError
from llm_data.messages import StepRewards
from llm_data.records import Reason
from llm_data.tasks.chat import Limit, TaskInput
from llm_data.tasks.prm import PrmSpec
from llm_data.tasks.truncation import TooLong
from task_batches import ReadBy, batch_of, rows_of

SOLUTION = "Janet has 4 eggs. ки\nShe sells 2 + 1 of them. ки\nThe answer is: 1 ки"


def _read(body):
    return StepRewards(text=body["text"], rewards=tuple(body["rewards"]))


@cache
def _tokenizer(kind: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    if kind == "byte-level":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], show_progress=False)
    # One word a text: no piece holds a line break and something else, as in real vocabularies.
    texts = [SOLUTION, "a ки", "1 + 2 - 3"] * 9
    words = [f"{space}{word}" for text in texts for word in text.split() for space in ("", " ")]
    tokenizer.train_from_iterator([*words, "\n"], trainer)
    return tokenizer


def _spec(tmp_path, kind: str = "metaspace", **options) -> PrmSpec:
    file = tmp_path / f"{kind}.json"
    _tokenizer(kind).save(str(file))
    limit = options.pop("limit", Limit())
    source = TaskInput(tokenizer_file=file, samples=ReadBy(_read), dtype="uint16", limit=limit)
    return PrmSpec(source=source, **{"placeholder": "ки", "reward_tokens": ("+", "-"), **options})


@pytest.mark.parametrize("kind", ["metaspace", "byte-level"])
def test_a_reward_is_the_label_of_its_step_and_nothing_else_is(tmp_path, kind):
    """A placeholder is one token, with or without the space before it, as tokenizers have it."""
    spec = _spec(tmp_path, kind)
    tokenizer = _tokenizer(kind)
    body = {"text": SOLUTION, "rewards": ["+", "-", "+"]}
    encoded = spec.build()(batch_of(body))
    rows = rows_of(encoded, spec)
    (ids,) = rows["input_ids"]
    assert list(rows) == ["input_ids", "labels", "attention_mask"]
    assert ids == tokenizer.encode(SOLUTION).ids
    steps = [at for at, number in enumerate(ids) if tokenizer.decode([number]).strip() == "ки"]
    plus, minus = (tokenizer.encode(text).ids[0] for text in "+-")
    wanted = [-100] * len(ids)
    for at, reward in zip(steps, (plus, minus, plus), strict=True):
        wanted[at] = reward
    assert rows["labels"] == [wanted]
    assert rows["attention_mask"] == [[1] * len(ids)]
    assert encoded.notes == {"truncated": 0, "loss_tokens": 3}


@pytest.mark.parametrize(
    ("body", "reason", "detail"),
    [
        ({"text": SOLUTION, "rewards": ["+"]}, "wrong_value", "3 tokens are the placeholder 'ки'"),
        ({"text": "ки", "rewards": ["+"]}, "wrong_value", "begins with the placeholder 'ки'"),
        ({"text": "a ки", "rewards": ["?"]}, "wrong_value", "reward '?', want one of '+', '-'"),
        ({"text": "a", "rewards": []}, "no_target", "no rewards"),
    ],
)
def test_what_is_wrong_with_a_solution_is_said(tmp_path, body, reason, detail):
    encoded = _spec(tmp_path).build()(batch_of({"text": "a ки", "rewards": ["+"]}, body))
    (reject,) = encoded.rejects
    assert (reject.place.number, reject.reason) == (2, Reason(reason))
    assert detail in reject.detail
    assert '"rewards"' in reject.raw
    assert encoded.num_documents == 1


def test_any_reward_of_one_token_is_allowed_where_none_are_named(tmp_path):
    spec = _spec(tmp_path, reward_tokens=())
    wrong = {"text": "a ки", "rewards": ["good"]}
    encoded = spec.build()(batch_of({"text": "a ки", "rewards": ["1"]}, wrong))
    assert rows_of(encoded, spec)["labels"][0][-1] == _tokenizer("metaspace").encode("1").ids[0]
    assert "reward 'good' is the tokens '▁', 'g', 'o', 'o'" in encoded.rejects[0].detail


@pytest.mark.parametrize(("option", "text"), [("placeholder", "кики"), ("reward_tokens", "+-")])
def test_a_placeholder_and_a_reward_of_several_tokens_are_usage_errors(tmp_path, option, text):
    value = text if option == "placeholder" else ("+", text)
    with pytest.raises(UsageError, match="must be one token") as error:
        _spec(tmp_path, **{option: value}).build()
    pieces = _tokenizer("metaspace").encode(text).tokens
    assert len(pieces) == 2
    assert f"{text!r} is the tokens {pieces[0]!r}, {pieces[1]!r}" in str(error.value)
    assert "--placeholder-token and --reward-tokens name others" in str(error.value)


def test_a_placeholder_that_the_tokenizer_does_not_know_is_a_usage_error(tmp_path):
    """It is one token, the unknown one, and so is everything else that is unknown."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "+": 1, "-": 2}, unk_token="<unk>"))
    tokenizer.save(str(tmp_path / "words.json"))
    source = TaskInput(tokenizer_file=tmp_path / "words.json", samples=ReadBy(_read), dtype="int32")
    with pytest.raises(UsageError, match="'ки' is the tokens '<unk>'"):
        PrmSpec(source=source, placeholder="ки", reward_tokens=("+", "-")).build()


@pytest.mark.parametrize("left", [3, 2, 1])
def test_truncation_keeps_the_first_steps(tmp_path, left):
    tokenizer = _tokenizer("metaspace")
    ids = tokenizer.encode(SOLUTION).ids
    steps = [at for at, n in enumerate(ids) if "ки" in tokenizer.id_to_token(n)]
    room = steps[left - 1] + 1
    limit = Limit(seq_length=room, too_long=TooLong.TRUNCATE)
    spec = _spec(tmp_path, limit=limit)
    encoded = spec.build()(batch_of({"text": SOLUTION, "rewards": ["+", "-", "-"]}))
    assert rows_of(encoded, spec)["input_ids"] == [ids[:room]]
    assert encoded.notes == {"truncated": int(left < 3), "loss_tokens": left}


def test_a_solution_without_a_step_left_is_a_counted_drop(tmp_path):
    limit = Limit(seq_length=2, too_long=TooLong.TRUNCATE)
    encoded = _spec(tmp_path, limit=limit).build()(batch_of({"text": SOLUTION, "rewards": "+-+"}))
    assert [reject.reason for reject in encoded.rejects] == [Reason.TOO_LONG]
    assert encoded.num_documents == 0


def test_a_spec_travels_to_another_process(tmp_path):
    spec = _spec(tmp_path)
    assert pickle.loads(pickle.dumps(spec)) == spec
