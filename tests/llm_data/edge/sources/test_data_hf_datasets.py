"""Inputs that Hugging Face's `datasets` wrote; what it reads back is what we must read."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from llm_data.edge.sources.inputs import find_inputs
from llm_data.edge.sources.readers import Meter, read_records
from llm_data.errors import DataError, UsageError
from llm_data.records import Record

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = [
    {"id": number, "turns": [{"role": "user", "content": f"text {number}"}] * (number % 3)}
    for number in range(50)
]


class Tiny(datasets.GeneratorBasedBuilder):
    """A dataset as the library itself prepares one of the hub, in its cache."""

    BUILDER_CONFIGS = (
        datasets.BuilderConfig(name="small"),
        datasets.BuilderConfig(name="large"),
    )

    def _info(self):
        turn = {"role": datasets.Value("string"), "content": datasets.Value("string")}
        features = {"id": datasets.Value("int64"), "turns": datasets.List(turn)}
        return datasets.DatasetInfo(features=datasets.Features(features))

    def _split_generators(self, dl_manager):
        return [
            datasets.SplitGenerator(name=name, gen_kwargs={"first": first})
            for name, first in (("train", 0), ("test", 40))
        ]

    def _generate_examples(self, first):
        most = 45 if self.config.name == "small" else 50
        yield from ((number, ROWS[number]) for number in range(first, most))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A cache with both configurations, the train split in several files."""
    cache = tmp_path_factory.mktemp("cache")
    for config in ("small", "large"):
        builder = Tiny(
            cache_dir=str(cache),
            dataset_name="tiny",
            config_name=config,
            hash="0" * 16,
            repo_id="acme/tiny",
            writer_batch_size=10,
        )
        builder.download_and_prepare(max_shard_size="1KB")
    return cache


@pytest.fixture
def offline_cache(prepared, monkeypatch):
    """The library without network, with that cache."""
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", prepared)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return prepared


def rows(arguments, **options):
    inputs = find_inputs(arguments, **options)
    items = list(read_records(inputs.files, key=None, start=None, meter=Meter()))
    records = [item for item in items if isinstance(item, Record)]
    assert records == items
    return [json.loads(record.payload) for record in records]


def shuffled(**options):
    """Rows in another order than those of the table below."""
    return datasets.Dataset.from_list(ROWS, **options).shuffle(seed=7).select(range(5, 35))


def test_a_saved_dataset_gives_the_rows_the_library_gives(tmp_path):
    dataset = shuffled()
    dataset.save_to_disk(tmp_path / "saved", num_shards=3)
    expected = list(datasets.load_from_disk(str(tmp_path / "saved")))
    assert expected != ROWS[5:35]
    assert rows([tmp_path / "saved"]) == expected == list(dataset)


def test_the_rows_are_those_of_the_shards_the_state_lists(tmp_path):
    """A second save with fewer shards leaves the first one's files behind."""
    saved = tmp_path / "saved"
    datasets.Dataset.from_list(ROWS).save_to_disk(saved, num_shards=3)
    datasets.Dataset.from_list(ROWS[:7]).save_to_disk(saved, num_shards=2)
    assert len(list(saved.glob("*.arrow"))) == 5
    assert rows([saved]) == list(datasets.load_from_disk(str(saved))) == ROWS[:7]


def test_a_dataset_dict_gives_the_split_asked_for(tmp_path):
    both = datasets.DatasetDict(
        {
            "train": datasets.Dataset.from_list(ROWS[:30]),
            "test": datasets.Dataset.from_list(ROWS[30:]),
        }
    )
    both.save_to_disk(tmp_path / "both")
    assert rows([tmp_path / "both"]) == ROWS[:30]
    assert rows([tmp_path / "both"], split="test") == ROWS[30:]
    assert rows([tmp_path / "both" / "test"]) == ROWS[30:]
    with pytest.raises(UsageError, match="no split 'dev'; it has train, test; --split chooses"):
        find_inputs([tmp_path / "both"], split="dev")


def test_saved_datasets_among_files_are_read_as_datasets(tmp_path):
    """Their JSON beside the data is no record, and they stand where their folder sorts."""
    datasets.Dataset.from_list(ROWS[10:20]).save_to_disk(tmp_path / "b_saved")
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS[:10])))
    (tmp_path / "c.json").write_text(json.dumps(ROWS[20:]))
    (tmp_path / "dataset_info.json").write_text("{}")
    assert rows([tmp_path]) == ROWS
    assert find_inputs([tmp_path]).ignored == {".json": 1}


def test_reading_a_saved_dataset_does_not_need_the_library(tmp_path, monkeypatch):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert rows([tmp_path / "saved"]) == ROWS


def test_a_name_gives_the_rows_that_load_dataset_gives(offline_cache):
    expected = list(datasets.load_dataset("acme/tiny", "large", split="train"))
    assert len(list(offline_cache.glob("acme___tiny/large/*/*/tiny-train-*.arrow"))) > 1
    assert rows(["acme/tiny:large"]) == expected == ROWS
    assert rows(["acme/tiny:large"], split="test") == ROWS[40:]
    assert rows(["acme/tiny"], datasets_params={"name": "small"}) == ROWS[:45]


def test_a_name_and_paths_mix(offline_cache, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0]))
    assert rows([tmp_path / "a.jsonl", "acme/tiny:small"], split="test") == [ROWS[0], *ROWS[40:45]]


def test_a_path_goes_before_a_name(offline_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme" / "tiny").mkdir(parents=True)
    (tmp_path / "acme" / "tiny" / "a.jsonl").write_text(json.dumps(ROWS[3]))
    assert rows(["acme/tiny"]) == [ROWS[3]]


def test_load_datasets_own_builders_take_files_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    params = {"data_files": {"dev": str(tmp_path / "a.jsonl")}}
    assert rows(["json"], datasets_params=params, split="dev") == ROWS


def test_the_digest_follows_the_rows(offline_cache):
    def digest(argument, **options):
        return find_inputs([argument], **options).sources[0].digest

    assert digest("acme/tiny:small") == digest("acme/tiny:small")
    others = [digest("acme/tiny:large"), digest("acme/tiny:small", split="test")]
    assert len({digest("acme/tiny:small"), *others}) == 3


@pytest.mark.parametrize(
    ("argument", "options", "says"),
    [
        ("acme/other", {}, r"acme/other: no such file or folder, and as a Hugging Face dataset: "),
        ("acme/tiny:huge", {}, r"acme/tiny:huge: .*Available configs"),
        ("acme/tiny:small", {"split": "dev"}, r"Unknown split"),
        ("acme/tiny:small", {"split": "train[:10%]"}, r"want the name of one split"),
        ("acme/tiny:small", {"datasets_params": {"name": "large"}}, r"name is 'small' here"),
        ("acme/tiny:small", {"datasets_params": {"streaming": True}}, r"'streaming' is not for us"),
        ("acme/tiny:small", {"datasets_params": {"no_such": 1}}, r"no_such"),
        ("acme/tiny.jsonl", {}, r"no such file or folder, nor a dataset's name"),
        ("tiny", {}, r"no such file or folder, nor a dataset's name"),
    ],
)
def test_what_cannot_be_found_is_said_in_its_own_words(offline_cache, argument, options, says):
    with pytest.raises(DataError, match=says):
        find_inputs([argument], **options)


def test_without_the_library_the_way_to_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'llm-data\[datasets\]'"):
        find_inputs(["acme/tiny"])


def test_options_of_datasets_need_a_dataset(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(UsageError, match="--split train: no INPUT is a Hugging Face dataset"):
        find_inputs([tmp_path], split="train")
    with pytest.raises(UsageError, match="--datasets-params: no INPUT is the name"):
        find_inputs([tmp_path], datasets_params={"revision": "main"})


def edit(path: Path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_damaged_saved_datasets_are_errors_not_fewer_rows(tmp_path):
    saved = tmp_path / "saved"

    def again():
        shutil.rmtree(saved, ignore_errors=True)
        datasets.Dataset.from_list(ROWS).save_to_disk(saved, num_shards=2)

    again()
    (saved / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow: no such file"):
        find_inputs([saved])
    again()
    (saved / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"state\.json: not JSON"):
        find_inputs([saved])
    again()
    edit(saved / "state.json", _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(DataError, match="rows in another order than its files"):
        find_inputs([saved])
    again()
    with pytest.raises(UsageError, match="--split test: the dataset holds no named split"):
        find_inputs([saved], split="test")
