"""Samples come in one global order, and a dataset that is not whole is refused."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_train.edge.token_dataset import DataError, read_facts

CONTRACT = Path(__file__).parents[1] / "contracts" / "token_dataset"
GOLDEN = CONTRACT / "golden" / "tiny_text_document"


@pytest.fixture(scope="module", autouse=True)
def _warm():
    import fork_ranks

    fork_ranks.warm()


@given(
    dp=st.sampled_from([1, 2, 3, 4]),
    micro=st.integers(1, 3),
    accumulation=st.integers(1, 4),
    first=st.integers(0, 5),
    steps=st.integers(1, 4),
)
def test_every_number_of_ranks_sees_the_same_samples_in_a_step(
    dp, micro, accumulation, first, steps
):
    from llm_train.batches import BatchSizes
    from llm_train.train.data import MicroBatches

    size = dp * micro * accumulation
    seen = {step: [] for step in range(first, first + steps)}
    for rank in range(dp):
        batches = MicroBatches(
            first_step=first,
            last_step=first + steps,
            sizes=BatchSizes(global_batch_size=size),
            micro_batch_size=micro,
            dp_rank=rank,
            dp_size=dp,
        )
        drawn = list(batches)
        assert len(drawn) == len(batches) == steps * accumulation
        for number, batch in enumerate(drawn):
            assert len(batch) == micro
            seen[first + number // accumulation] += batch
    for step, samples in seen.items():
        assert sorted(samples) == list(range(step * size, (step + 1) * size))


def test_facts_of_the_golden_dataset():
    manifest = json.loads(Path(f"{GOLDEN}.json").read_text())
    facts = read_facts(GOLDEN)
    assert facts.tokens == manifest["num_tokens"]
    assert facts.sequences == manifest["num_sequences"]
    assert facts.tokenizer_digest == manifest["tokenizer"]["digest"]


@pytest.fixture
def copied(tmp_path):
    for suffix in ("bin", "idx", "json"):
        shutil.copy(f"{GOLDEN}.{suffix}", tmp_path / f"tiny_text_document.{suffix}")
    return tmp_path / "tiny_text_document"


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_missing_file_is_named_with_what_is_there(copied, suffix):
    with pytest.raises(DataError, match=r"nothing\.idx: no such file; datasets in .*: tiny_text"):
        read_facts(copied.with_name("nothing"))
    Path(f"{copied}.{suffix}").unlink()
    with pytest.raises(DataError, match=rf"tiny_text_document\.{suffix}: no such file"):
        read_facts(copied)


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_file_cut_short_is_named_with_both_sizes(copied, suffix):
    path = Path(f"{copied}.{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    with pytest.raises(DataError, match=rf"{path.name}: found {len(data) - 3} bytes, want "):
        read_facts(copied)


def test_foreign_index_is_refused(copied):
    Path(f"{copied}.idx").write_bytes(b"PK\x03\x04" + bytes(60))
    with pytest.raises(DataError, match="magic b'PK"):
        read_facts(copied)


def test_dataset_without_manifest_is_read(copied):
    Path(f"{copied}.json").unlink()
    assert read_facts(copied).tokenizer_digest is None


class Source:
    """A weight source that says only which files belong to it."""

    def __init__(self, *companions):
        self._companions = companions

    def companions(self):
        return list(self._companions)


def data_config(*prefixes, **settings):
    from llm_train.config import DataConfig

    return DataConfig(train=prefixes, **settings)


def test_one_tokenizer_is_named_by_dataset_and_model_alike():
    from llm_train.edge.inputs import one_tokenizer

    facts = [read_facts(GOLDEN)]
    source = Source(CONTRACT / "golden" / "tokenizer" / "tokenizer.json")
    assert one_tokenizer(data_config(GOLDEN), facts, source) == facts[0].tokenizer_digest


def test_another_tokenizer_is_refused_unless_allowed(tmp_path):
    from llm_train.edge.inputs import one_tokenizer

    other = tmp_path / "tokenizer.json"
    other.write_text('{"model": {}}')
    facts, source = [read_facts(GOLDEN)], Source(other)
    with pytest.raises(DataError, match=r"tiny_text_document .*…, the model .*…; want one"):
        one_tokenizer(data_config(GOLDEN), facts, source)
    allowed = data_config(GOLDEN, allow_tokenizer_mismatch=True)
    assert one_tokenizer(allowed, facts, source) == facts[0].tokenizer_digest


def test_dataset_with_more_tokens_than_the_model_is_refused():
    from llm_train.arch import parse
    from llm_train.edge.inputs import read_datasets

    document = json.loads((CONTRACT.parent / "arch" / "golden" / "qwen3_tiny.json").read_text())
    wanted = read_facts(GOLDEN).vocab_size
    arch = parse({**document, "vocab_size": wanted - 1}, where="arch.json")
    with pytest.raises(
        DataError, match=f"has {wanted} tokens, the model's vocabulary {wanted - 1}"
    ):
        read_datasets(data_config(GOLDEN), arch)
