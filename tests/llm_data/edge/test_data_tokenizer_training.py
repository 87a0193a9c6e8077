import json
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llm_data.config import OnError, TrainingConfig
from llm_data.edge.tokenizer_training import REJECTS, train_tokenizer
from llm_data.errors import DataError, UsageError


@pytest.fixture(scope="module")
def loaded(tokenizer):
    return AutoTokenizer.from_pretrained(tokenizer)


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_transformers_decodes_any_text_exactly(loaded, text):
    assert loaded.decode(loaded(text).input_ids) == text


@pytest.mark.parametrize(
    "text",
    [
        "  two  spaces , and . punctuation ! it's",
        "\r\n\t\x00\x7f\u200b\ufeff",
        "e\u0301 \u00e9 \ufb01 ①",
        "<|endoftext|><|pad|> <|other|>",
        "".join(map(chr, range(0x20, 0x500))),
    ],
)
def test_nothing_is_normalised_or_cleaned_up(loaded, text):
    assert loaded.decode(loaded(text).input_ids) == text


def test_transformers_knows_the_special_tokens(loaded):
    assert (loaded.eos_token, loaded.eos_token_id) == ("<|endoftext|>", 0)
    assert (loaded.pad_token, loaded.pad_token_id) == ("<|pad|>", 1)
    assert len(loaded) == 400
    assert loaded("a<|endoftext|>").input_ids[-1] == 0


def test_extra_special_tokens_follow_and_are_never_cut(corpus, tmp_path):
    train_tokenizer(
        TrainingConfig(
            inputs=[corpus],
            output=tmp_path / "t",
            vocab_size=300,
            special_tokens=("<|im_start|>", "<|im_end|>"),
        )
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert tokenizer("<|im_start|>x<|im_end|>").input_ids[::2] == [2, 3]
    assert tokenizer.decode(tokenizer("<|im_end|>x").input_ids, skip_special_tokens=True) == "x"


def test_training_again_elsewhere_gives_the_same_bytes(corpus, tokenizer, tmp_path):
    """In another process, whose hash seeds differ."""
    code = (
        "import sys; from pathlib import Path; from llm_data.config import TrainingConfig;"
        "from llm_data.edge.tokenizer_training import train_tokenizer;"
        "train_tokenizer(TrainingConfig(inputs=[Path(sys.argv[1])], output=Path(sys.argv[2]),"
        " vocab_size=400))"
    )
    subprocess.run([sys.executable, "-c", code, str(corpus), str(tmp_path / "t")], check=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "t" / name).read_bytes() == (tokenizer / name).read_bytes()


def test_a_finished_training_is_not_done_again(corpus, tmp_path):
    config = TrainingConfig(inputs=[corpus], output=tmp_path / "t", vocab_size=300)
    first = train_tokenizer(config)
    before = (tmp_path / "t" / "tokenizer.json").stat().st_mtime_ns
    assert train_tokenizer(config) == replace(first, already_done=True)
    with pytest.raises(DataError, match=r"differs in vocab_size\); --overwrite"):
        train_tokenizer(replace(config, vocab_size=310))
    assert (tmp_path / "t" / "tokenizer.json").stat().st_mtime_ns == before
    assert train_tokenizer(replace(config, vocab_size=310, overwrite=True)).vocab_size == 310


def test_someone_elses_tokenizer_is_not_replaced(corpus, bytes_tokenizer):
    (bytes_tokenizer / "tokenizer_training.json").unlink()
    with pytest.raises(DataError, match="another tokenizer is there"):
        train_tokenizer(TrainingConfig(inputs=[corpus], output=bytes_tokenizer, vocab_size=300))


def test_a_bad_record_stops_or_is_set_aside(corpus, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(corpus.read_bytes() + b'{"tex": 1}\n{"text": ""}\n')
    config = TrainingConfig(inputs=[path], output=tmp_path / "t", vocab_size=300)
    with pytest.raises(DataError, match=r"bad\.jsonl: line 3001: no key 'text'"):
        train_tokenizer(config)
    assert not (tmp_path / "t").exists()
    result = train_tokenizer(replace(config, on_error=OnError.SKIP))
    assert (result.num_documents, result.drops) == (3000, {"empty": 1, "missing_key": 1})
    (line,) = (tmp_path / "t" / REJECTS).read_text().splitlines()
    found = json.loads(line)
    assert (found["file"], found["number"], found["raw"]) == (str(path), 3001, '{"tex": 1}')
    train_tokenizer(replace(config, inputs=[corpus], overwrite=True))
    assert not (tmp_path / "t" / REJECTS).exists()


def test_nothing_but_bad_records_is_an_error_that_quotes_the_first(tmp_path):
    (tmp_path / "bad.jsonl").write_bytes(b'{"tex": 1}\n')
    config = TrainingConfig(
        inputs=[tmp_path], output=tmp_path / "t", vocab_size=300, on_error=OnError.SKIP
    )
    with pytest.raises(DataError, match=r"no text in 1 files; the first error: .*: line 1: no key"):
        train_tokenizer(config)


def test_too_little_text_gives_a_smaller_vocabulary(tmp_path):
    (tmp_path / "a.txt").write_text("ab ab ab")
    result = train_tokenizer(
        TrainingConfig(inputs=[tmp_path / "a.txt"], output=tmp_path / "t", vocab_size=5000)
    )
    vocab = json.loads((tmp_path / "t" / "tokenizer.json").read_text())["model"]["vocab"]
    assert result.vocab_size == len(vocab) < 300


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vocab_size": 257}, "want ≥ 258 = 256 bytes + 2 special tokens"),
        ({"special_tokens": ("<|pad|>",)}, "want distinct"),
        ({"special_tokens": ("",)}, "not empty"),
        ({"inputs": ()}, "no INPUT given"),
    ],
)
def test_impossible_requests_are_usage_errors(tmp_path, change, says):
    good = TrainingConfig(inputs=[tmp_path], output=tmp_path / "t", vocab_size=258)
    with pytest.raises(UsageError) as error:
        replace(good, **change)
    assert says in str(error.value)
