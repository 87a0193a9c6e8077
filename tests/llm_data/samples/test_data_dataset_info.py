"""LLaMA-Factory's dataset_info.json, by the description of its keys beside its data."""

import pytest

from llm_data.errors import DataError, FormatError, UsageError
from llm_data.samples.columns import Format
from llm_data.samples.dataset_info import find_entry

_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
}


def test_an_alpaca_entry_reads_only_the_optional_columns_it_names():
    info = {"mine": {"file_name": "data.json", "columns": {"prompt": "q", "history": "before"}}}
    entry = find_entry(info, "mine")
    assert (entry.file, entry.hub, entry.format) == ("data.json", None, Format.ALPACA)
    assert entry.map_keys == {"prompt": "q", "history": "before", "system": "", "tools": ""}
    assert not entry.is_ranking


def test_a_sharegpt_entry_of_a_repository_has_its_parts_and_tags():
    body = {
        "hf_hub_url": "some/pairs",
        "formatting": "sharegpt",
        "ranking": True,
        "subset": "en",
        "split": "train_prefs",
        "folder": "data",
        "columns": {"messages": "messages", "tools": "tools", "images": None},
        "tags": _TAGS,
    }
    entry = find_entry({"pairs": body}, "pairs")
    assert (entry.file, entry.hub, entry.format) == (None, "some/pairs", Format.SHAREGPT)
    assert entry.map_keys == {"messages": "messages", "tools": "tools", "system": "", "tags": _TAGS}
    assert entry.is_ranking
    assert (entry.subset, entry.split, entry.folder) == ("en", "train_prefs", "data")


def test_the_split_that_every_file_is_says_nothing():
    assert find_entry({"a": {"file_name": "x.json", "split": "train"}}, "a").split is None


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ({}, UsageError, "neither file_name nor hf_hub_url"),
        ([], FormatError, "mine: a list, want an object"),
        ({"file_name": 3}, FormatError, "file_name is a number, want a string"),
        ({"file_name": "x", "rank": True}, UsageError, "unknown key 'rank'.*mean 'ranking'"),
        ({"file_name": "x", "ranking": "yes"}, FormatError, "ranking is a string, want true"),
        ({"file_name": "x", "formatting": "sharegtp"}, UsageError, "did you mean 'sharegpt'"),
        ({"file_name": "x", "columns": {"promt": "q"}}, UsageError, "did you mean 'prompt'"),
        ({"file_name": "x", "columns": {"images": "i"}}, UsageError, "images are not text"),
        ({"file_name": "x", "columns": {"kto_tag": "k"}}, UsageError, "kto_tag marks single"),
        ({"file_name": "x", "columns": []}, FormatError, "columns is a list, want an object"),
        ({"file_name": "x", "num_samples": 5}, UsageError, "num_samples is not supported: every"),
        (
            {"file_name": "x", "subset": "en"},
            UsageError,
            "subset 'en' has no meaning for file_name",
        ),
        ({"file_name": "x", "split": "test"}, UsageError, "split 'test' has no meaning"),
        ({"script_url": "x"}, UsageError, "script_url is not supported: datasets no longer runs"),
    ],
)
def test_what_an_entry_cannot_have_is_named(body, error, message):
    with pytest.raises(error, match=message):
        find_entry({"mine": body}, "mine")


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(DataError, match="no dataset 'mime'; it has mine; did you mean 'mine'"):
        find_entry({"mine": {}}, "mime")
