import json
import math

import pytest

from llm_eval.edge.run_folder import RunFolder, read_results
from llm_eval.errors import EvalError

SETTINGS = {"model": "m", "batch_size": 4}


def _score(folder, key, logprob, computed):
    def compute():
        computed.append(key)
        return [(logprob, 1)]

    return folder.recall(key, compute, num_tokens=3)


def _fail(path, error, *, logprob, computed):
    """A run that scores one batch, then ends with `error`."""

    def run():
        with RunFolder(path, SETTINGS) as folder:
            _score(folder, "a", logprob, computed)
            raise error

    with pytest.raises(type(error)):
        run()


def test_scored_batches_are_recalled_exactly_and_not_computed_again(tmp_path):
    computed = []
    _fail(tmp_path, KeyboardInterrupt(), logprob=-0.1 - 0.2, computed=computed)
    with RunFolder(tmp_path, SETTINGS) as folder:
        assert folder.num_known == 1
        assert _score(folder, "a", 0.0, computed) == [(-0.1 - 0.2, 1)]
        _score(folder, "b", -1.0, computed)
    assert computed == ["a", "b"]


def test_a_line_cut_off_by_a_crash_is_computed_again(tmp_path):
    with RunFolder(tmp_path, SETTINGS) as folder:
        _score(folder, "a", -1.0, [])
        _score(folder, "b", -2.0, [])
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-5])
    computed = []
    with RunFolder(tmp_path, SETTINGS) as folder:
        _score(folder, "a", 0.0, computed)
        _score(folder, "b", -2.0, computed)
    assert computed == ["b"]
    assert [json.loads(line)["key"] for line in journal.read_text().splitlines()] == ["a", "b"]


def test_a_failed_run_leaves_a_marked_partial_result_and_no_results(tmp_path):
    _fail(tmp_path, RuntimeError("device gone"), logprob=-1.5, computed=[])
    partial = json.loads((tmp_path / "partial.json").read_text())
    assert partial == {
        "partial": True,
        "error": "RuntimeError: device gone",
        "scored_requests": 0,
        "scored_batches": 1,
        "logprob_so_far": -1.5,
    }
    with pytest.raises(EvalError, match="unfinished; run the same command again"):
        read_results(tmp_path)


def test_finishing_leaves_results_and_no_journal(tmp_path):
    with RunFolder(tmp_path, SETTINGS) as folder:
        _score(folder, "a", -1.0, [])
        folder.finish({"results": {}}, [{"doc_id": 0}], seconds=1.0)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["results.json", "run.json", "samples.jsonl"]
    assert read_results(tmp_path) == {"results": {}}


def test_other_settings_are_refused_by_name(tmp_path):
    with RunFolder(tmp_path, SETTINGS):
        pass
    with (
        pytest.raises(EvalError, match=r"batch_size: was 4, now 8\n.*--overwrite"),
        RunFolder(tmp_path, SETTINGS | {"batch_size": 8}),
    ):
        pass


def test_overwrite_starts_afresh(tmp_path):
    with RunFolder(tmp_path, SETTINGS) as folder:
        _score(folder, "a", -1.0, [])
        folder.finish({"results": {}}, [], seconds=1.0)
    with RunFolder(tmp_path, {"model": "n"}, overwrite=True) as folder:
        assert (folder.num_known, folder.is_finished) == (0, False)


def test_two_runs_in_one_folder_are_refused(tmp_path):
    with (
        RunFolder(tmp_path, SETTINGS),
        pytest.raises(EvalError, match="another run is writing here"),
        RunFolder(tmp_path, SETTINGS),
    ):
        pass


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_log_probability_that_is_no_number_stops_the_run(tmp_path, bad):
    with pytest.raises(EvalError, match="no number"), RunFolder(tmp_path, SETTINGS) as folder:
        _score(folder, "a", bad, [])
    assert (tmp_path / "journal.jsonl").read_bytes() == b""


def test_results_of_someone_else_are_not_taken_for_ours(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with (
        pytest.raises(EvalError, match=r"has results.json but no run.json"),
        RunFolder(tmp_path, SETTINGS),
    ):
        pass


def test_an_output_that_is_a_file(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(EvalError, match="is a file, want a folder"), RunFolder(tmp_path / "f", {}):
        pass
