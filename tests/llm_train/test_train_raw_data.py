"""Raw text in a config, against a provider that only notes what it was asked."""

import fcntl
import json
import threading
from pathlib import Path

import pytest

from llm_train.config import RunConfig
from llm_train.config_parse import parse
from llm_train.edge import raw_data
from llm_train.overrides import ConfigError
from llm_train.weights import ProviderError


class Provider:
    """An installed package's entry point, and the package's function."""

    name = "fake"

    def __init__(self):
        self.asked = []

    def load(self):
        return self

    def __call__(self, inputs, *, output, **options):
        self.asked.append((inputs, output, options))
        return output.with_name(f"{output.name}_text_document")


@pytest.fixture
def provider(monkeypatch):
    found = Provider()
    monkeypatch.setattr(raw_data, "entry_points", lambda group: [found])
    return found


@pytest.fixture
def document(tmp_path):
    return {
        "model": {"arch": "arch.json"},
        "data": {"raw": {"train": ["corpus"], "tokenizer": "tok"}},
        "train": {"max_steps": 1, "seq_length": 8, "global_batch_size": 1, "eval_every": 1},
        "optimizer": {"lr": 1.0},
        "save": {"path": str(tmp_path / "run")},
    }


def resolved(document, *overrides, say=lambda text: None) -> RunConfig:
    return raw_data.with_datasets(parse(document, overrides, "test"), say=say)


def test_the_datasets_made_take_the_place_of_the_text(provider, document, tmp_path):
    words = ("data.raw.valid=[held, out]", "data.raw.key=body", "data.raw.append_eod=false")
    config = resolved(document, *words)
    folder = tmp_path / "run/data"
    assert config.data.raw is None
    assert config.data.train == (folder / "train_text_document",)
    assert config.data.valid == (folder / "valid_text_document",)
    options = {
        "tokenizer": Path("tok"),
        "key": "body",
        "patterns": (),
        "append_eod": False,
        "skip_bad_records": False,
        "workers": None,
    }
    assert provider.asked == [
        (("corpus",), folder / "train", options),
        (("held", "out"), folder / "valid", options),
    ]


def test_ranks_are_given_the_datasets_and_tokenize_nothing(provider, document):
    config = parse(document, ["data.raw.workers=2"], "test")
    ready = raw_data.with_datasets(config, say=lambda text: None)
    words = ["data.raw.workers=2", *raw_data.overrides_for_ranks(config, ready)]
    assert parse(document, words, "test") == ready
    assert len(provider.asked) == 1
    assert resolved(document, *words) == ready
    assert len(provider.asked) == 1


def test_a_path_of_any_script_reaches_the_ranks(provider, document, tmp_path):
    document["save"]["path"] = str(tmp_path / "été 'run' 日本🙂")
    config = parse(document, [], "test")
    ready = raw_data.with_datasets(config, say=lambda text: None)
    assert parse(document, raw_data.overrides_for_ranks(config, ready), "test") == ready


def test_token_datasets_are_left_as_they_are(provider, document):
    document["data"] = {"train": ["a"]}
    config = parse(document, [], "test")
    assert raw_data.with_datasets(config, say=lambda text: None) is config
    assert raw_data.overrides_for_ranks(config, config) == []
    assert provider.asked == []


def test_without_a_provider_the_error_says_what_to_install(monkeypatch, document, tmp_path):
    monkeypatch.setattr(raw_data, "entry_points", lambda group: [])
    with pytest.raises(ProviderError, match=r"'llm_train.raw_data'.*pip install llm-data"):
        resolved(document)
    assert not (tmp_path / "run").exists()


def test_the_models_own_tokenizer_is_taken_unless_another_is_named(provider, document, tmp_path):
    document["data"]["raw"].pop("tokenizer")
    with pytest.raises(ConfigError, match=r"data.raw.tokenizer: missing, and model.arch has none"):
        resolved(document)
    document["model"] = {"load": str(tmp_path / "hf")}
    with pytest.raises(ConfigError, match=r"hf holds no tokenizer.json"):
        resolved(document)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/tokenizer.json").write_text("{}")
    resolved(document)
    assert provider.asked[0][2]["tokenizer"] == tmp_path / "hf"


def test_a_second_process_waits_and_says_so(provider, document, tmp_path):
    folder = tmp_path / "run/data"
    folder.mkdir(parents=True)
    said, told = [], threading.Event()

    def say(text):
        said.append(text)
        told.set()

    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        waiting = threading.Thread(target=lambda: resolved(document, say=say))
        waiting.start()
        assert told.wait(60)
        assert provider.asked == []
    waiting.join(60)
    assert said == [f"waiting for another process that tokenizes into {folder}"]
    assert len(provider.asked) == 1


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.train=[a]", "data: found both of train and raw, wanted exactly one of them"),
        ("data.raw=null", "data: found neither of train and raw"),
        ("data.raw.train=[]", "data.raw.train: found 0 entries, wanted files and folders of text"),
        ("data.weights=[1]", "data: weights is for several train prefixes"),
        ("data.raw.tokeniser=x", "data.raw.tokeniser: unknown key; did you mean tokenizer?"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(document, word, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        parse(document, [word], "test")


def test_text_to_evaluate_on_is_something_to_evaluate_on(document):
    from llm_train.arch import parse as parse_arch
    from llm_train.check import problems

    golden = Path(__file__).parents[1] / "contracts/arch/golden/llama_tiny.json"
    arch = parse_arch(json.loads(golden.read_text()), where="golden")
    (problem,) = problems(parse(document, [], "test"), arch, 1)
    assert "needs data: set data.valid" in problem
    assert problems(parse(document, ["data.raw.valid=[held]"], "test"), arch, 1) == []
    with pytest.raises(ConfigError, match="wanted at most one"):
        parse(document, ["data.raw.valid=[held]", "data.valid=[v]"], "test")
    with pytest.raises(ConfigError, match="wanted at most one"):
        parse(document, ["data.raw.valid=[held]", "data.valid_fraction=0.1"], "test")


def test_ranks_that_another_launcher_started_find_the_data_themselves(
    monkeypatch, run_document, toy_prefix, tmp_path
):
    """As under torchrun: every rank asks, one at a time, and all train on what it says."""
    from fork_ranks import run_ranks

    def prepare(inputs, *, output, **options):
        with (tmp_path / "asked").open("a") as file:
            file.write(f"{inputs[0]}\n")
        return toy_prefix

    provider = Provider()
    provider.load = lambda: prepare
    monkeypatch.setattr(raw_data, "entry_points", lambda group: [provider])
    run_document["train"]["max_steps"] = 3

    def losses(data, world_size, name):
        folder = tmp_path / name
        document = {**run_document, "data": data, "save": {"path": str(folder)}}

        def rank(_rank):
            from llm_train.edge.run import run

            run(parse(document, [], "test"))

        run_ranks(rank, world_size)
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if "loss" in line]

    raw = {"raw": {"train": ["corpus"], "tokenizer": "tok"}}
    wanted = losses({"train": [str(toy_prefix)]}, 2, "tokens")
    assert losses(raw, 2, "text") == wanted
    assert (tmp_path / "asked").read_text() == "corpus\n" * 2
