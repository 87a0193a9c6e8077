"""Processes that load a probable backend before it is known which one the run uses."""

from dataclasses import replace

import pytest

from llm_data.backends.backend import BackendName, BackendSpec
from llm_data.edge.runs.workers import Crew
from llm_data.errors import DataError
from llm_data.tasks.pretrain import PretrainSpec
from task_batches import batch_of


@pytest.fixture
def spec(tokenizer):
    return PretrainSpec(
        tokenizer_file=tokenizer / "tokenizer.json", key="text", eod_id=0, dtype="int32"
    )


def encoded(crew, spec):
    return list(crew.encode((batch_of({"text": f"ka lo {n}"}) for n in range(20)), spec))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_backend_of_the_run_encodes_whatever_was_prepared(spec, tmp_path, workers):
    """A wrong guess, one that cannot be built, and a right one."""
    fast = replace(spec, backend=BackendSpec(name=BackendName.GIGATOKEN))
    other = replace(fast, eod_id=5)
    missing = replace(fast, tokenizer_file=tmp_path / "none.json")
    wanted = [spec.build()(batch_of({"text": f"ka lo {n}"})) for n in range(20)]
    for guess in (other, missing, fast, spec):
        with Crew(workers) as crew:
            crew.prepare(guess)
            assert encoded(crew, spec) == wanted
            assert encoded(crew, fast) == wanted


def test_a_prepared_encoder_that_cannot_be_built_is_an_error_once_it_is_needed(spec, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    broken = replace(spec, tokenizer_file=file)
    with Crew(2) as crew:
        crew.prepare(broken)
        with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer"):
            encoded(crew, broken)
