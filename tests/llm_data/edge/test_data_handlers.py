"""Handlers by name: MindSpeed-LLM's table, dataset_info.json, and one's own by entry point."""

import json
import pickle
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from llm_data.config import PreprocessConfig, Task
from llm_data.edge.datasets.sample_dataset import verify_samples
from llm_data.edge.datasets.token_dataset import open_token_dataset
from llm_data.edge.handlers import (
    handler_origin,
    record_reader,
    tasks_of_handler,
    with_dataset_info,
)
from llm_data.edge.runs.pipeline import preprocess
from llm_data.errors import DataError, UsageError
from llm_data.messages import Conversation
from llm_data.records import RecordRefusedError
from task_batches import batch_of

# The classes of data_handler.py of MindSpeed-LLM 2.0.0 to master, with what each makes, copied by
# hand: the columns of a handler's json_keys are those of one task here.
_NAMES = {
    "GeneralPretrainHandler": "pretrain",
    "AlpacaPretrainHandler": "pretrain",
    "SharegptPretrainHandler": "pretrain",
    "StackOverflowPythonPretrainHandler": "pretrain",
    "AlpacaStyleInstructionHandler": "sft",
    "SharegptStyleInstructionHandler": "sft",
    "OpenAIInstructionHandler": "sft",
    "LlamaFactoryInstructionHandler": "sft",
    "HunyuanInstructionHandler": "sft",
    "GeneralInstructionHandler": "sft",
    "BelleMultiTurnInstructionHandler": "sft",
    "MOSSMultiTurnHandler": "sft",
    "MOSSInstructionHandler": "sft",
    "LeetcodePythonInstructionHandler": "sft",
    "AlpacaStylePairwiseHandler": "pairwise",
    "SharegptStylePairwiseHandler": "pairwise",
    "AlpacaStyleProcessRewardHandler": "prm",
    "PPOAlpacaStyleInstructionHandler": "prompt",
    "R1AlpacaStyleInstructionHandler": "prompt",
    "R1SharegptStyleInstructionHandler": "prompt",
}
_ALPACA = {"instruction": "Q", "input": "I", "output": "A", "system": "S", "history": [["q", "a"]]}
_SHAREGPT = {
    "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],
    "system": "S",
    "chosen": {"from": "gpt", "value": "A"},
    "rejected": {"from": "gpt", "value": "B"},
}


def _config(**options) -> PreprocessConfig:
    values = {"inputs": ["x"], "tokenizer": "t", "output": "o", "template": "chatml", **options}
    if values.get("task") in (Task.PRETRAIN, Task.PRM, None):
        del values["template"]
    return PreprocessConfig(**values)


def _read(record, **options):
    reader = record_reader(_config(**options), [batch_of(record)])
    return pickle.loads(pickle.dumps(reader)).build()(record)


def _texts(sample) -> list[str]:
    return [message.content for message in sample.messages]


@pytest.mark.parametrize("name", _NAMES)
def test_every_name_of_the_predecessor_serves_its_task(name):
    assert tasks_of_handler(name)[0] == _NAMES[name]


def test_an_alpaca_handler_reads_system_and_history_only_if_they_are_mapped():
    options = {"task": Task.SFT, "handler": "AlpacaStyleInstructionHandler"}
    assert _texts(_read(_ALPACA, **options)) == ["Q\nI", "A"]
    mapped = {"system": "system", "history": "history"}
    assert _texts(_read(_ALPACA, map_keys=mapped, **options)) == ["S", "q", "a", "Q\nI", "A"]
    assert _texts(_read(_ALPACA, task=Task.SFT)) == ["S", "q", "a", "Q\nI", "A"]


def test_a_sharegpt_handler_reads_the_system_column_only_if_it_is_mapped():
    options = {"task": Task.SFT, "handler": "SharegptStyleInstructionHandler"}
    assert _texts(_read(_SHAREGPT, **options)) == ["Q", "A"]
    assert _texts(_read(_SHAREGPT, map_keys={"system": "system"}, **options)) == ["S", "Q", "A"]


@pytest.mark.parametrize(
    ("handler", "task", "record", "wanted"),
    [
        ("AlpacaPretrainHandler", Task.PRETRAIN, _ALPACA, "### Response: ASSISTANT: A"),
        ("SharegptPretrainHandler", Task.PRETRAIN, _SHAREGPT, "QA"),
        (None, Task.PRETRAIN, _SHAREGPT, None),
        ("GeneralPretrainHandler", Task.PRETRAIN, _ALPACA, None),
    ],
)
def test_pretraining_handlers_give_texts_or_leave_them_to_the_key(handler, task, record, wanted):
    options = {"task": task, "handler": handler}
    if wanted is None:
        assert record_reader(_config(**options), [batch_of(record)]) is None
    else:
        assert _read(record, **options).endswith(wanted)


def test_the_key_names_the_column_of_messages_to_pretrain_on():
    record = {"talk": [{"value": "a"}, {"content": "b"}]}
    options = {"task": Task.PRETRAIN, "handler": "SharegptPretrainHandler", "key": "talk"}
    assert _read(record, **options) == "ab"
    both = {"talk": [], "turns": record["talk"]}
    assert _read(both, map_keys={"messages": "turns"}, **options) == "ab"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"handler": "AlpacaStyleHandler"}, "no such handler; want General.*mean 'AlpacaStyle"),
        ({"handler": "AlpacaStylePairwiseHandler"}, "no meaning with --task sft, want --task pair"),
        (
            {"handler": "AlpacaStyleInstructionHandler", "format": "openai"},
            "--format openai: --handler-name AlpacaStyleInstructionHandler reads alpaca",
        ),
        ({"handler": "LlamaFactoryInstructionHandler"}, "needs --dataset-dir"),
        ({"map_keys": {"system": "sytem"}}, "none of the first 1 records has 'sytem'.*'system'"),
        ({"map_keys": {"prompt": "instruction", "response": "answer"}}, "has 'answer'; they have"),
        ({"map_keys": {"kto_tag": "x"}}, "kto_tag marks single answers"),
        ({"format": "openai", "map_keys": {"query": "x"}}, "none of the first 1 records has 'x'"),
        ({"map_keys": {"promt": "x"}}, "no key 'promt' in any format, want .*mean 'prompt'"),
    ],
)
def test_names_that_fit_nothing_are_errors_of_usage(options, message):
    with pytest.raises(UsageError, match=message):
        _read(_ALPACA, task=Task.SFT, **options)


def test_the_first_record_that_can_be_read_tells_the_format():
    reader = record_reader(_config(task=Task.SFT), [batch_of(b"{broken", b"[]", _SHAREGPT)])
    assert reader.format == "sharegpt"
    with pytest.raises(RecordRefusedError, match="--format auto took sharegpt for all"):
        reader.build()(_ALPACA)


def test_an_input_without_records_tells_no_format():
    with pytest.raises(DataError, match="no record to tell the format from; --format names it"):
        record_reader(_config(task=Task.SFT), [])


def test_what_hides_the_format_is_named_by_file_and_line(tmp_path, bytes_tokenizer):
    path = tmp_path / "chats.jsonl"
    config = _config(
        task=Task.SFT, inputs=[path], tokenizer=bytes_tokenizer, output=tmp_path / "out"
    )
    path.write_text('{broken\n{"foo": 1}\n')
    with pytest.raises(
        UsageError, match=r"--format auto: .*chats\.jsonl: line 2: .* has foo; want"
    ):
        preprocess(config)
    path.write_text("{broken\n[]\n")
    told = (
        r"no record to tell the format from; .*chats\.jsonl: line 1: not JSON: .*--format names it"
    )
    with pytest.raises(DataError, match=told):
        preprocess(config)


def _info(tmp_path, **entries):
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    return tmp_path


def test_llama_factorys_entries_describe_a_run(tmp_path):
    """Defect 14: MindSpeed-LLM 2.3.0 refuses every dataset_info.json that it can read."""
    entry = {"file_name": "a.jsonl", "columns": {"prompt": "ask", "response": "say"}}
    folder = _info(tmp_path, first=entry, second={**entry, "file_name": "b"})
    config = _config(
        task=Task.SFT,
        handler="LlamaFactoryInstructionHandler",
        inputs=["first,second"],
        map_keys={"response": "answer"},
    )
    found = with_dataset_info(config, folder)
    assert found.inputs == [folder / "a.jsonl", folder / "b"]
    record = {"ask": "Q", "answer": "A", "say": "no", "system": "S"}
    reader = record_reader(found, [batch_of(record)])
    assert _texts(reader.build()(record)) == ["Q", "A"]


def test_an_entry_of_a_repository_hands_its_parts_to_datasets(tmp_path):
    entry = {"hf_hub_url": "some/data", "formatting": "sharegpt", "ranking": True}
    folder = _info(tmp_path, it={**entry, "subset": "en", "split": "prefs", "folder": "parts"})
    found = with_dataset_info(_config(task=Task.PAIRWISE, inputs=["it"]), folder)
    assert found.inputs == ["some/data"]
    assert (found.format, found.split) == ("sharegpt", "prefs")
    assert found.datasets_params == {"name": "en", "data_dir": "parts"}


@pytest.mark.parametrize(
    ("options", "entry", "message"),
    [
        ({}, {"ranking": True}, "it has ranking true, --task sft wants the other"),
        ({"task": Task.PAIRWISE}, {}, "it has ranking false, --task pairwise wants the other"),
        ({"format": "openai"}, {}, "--format openai: .* says it is alpaca"),
        ({"inputs": ["it", "other"]}, {}, "it and other read differently"),
        ({"inputs": ["its"]}, {}, "dataset_info.json: no dataset 'its'.*did you mean 'it'"),
    ],
)
def test_entries_that_contradict_the_run_say_so(tmp_path, options, entry, message):
    file = {"file_name": "a.jsonl"}
    folder = _info(tmp_path, it={**file, **entry}, other={**file, "formatting": "sharegpt"})
    with pytest.raises(UsageError, match=message):
        with_dataset_info(_config(**{"task": Task.SFT, "inputs": ["it"], **options}), folder)


def test_a_folder_without_dataset_info_is_an_error_of_usage(tmp_path):
    with pytest.raises(UsageError, match=r"no dataset_info.json in it"):
        with_dataset_info(_config(task=Task.SFT), tmp_path)
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        with_dataset_info(_config(task=Task.SFT), tmp_path)


_OWN = """
    from llm_data.messages import Conversation, Message
    from llm_data.records import Reason, RecordRefusedError


    class Riddles:
        task = "sft"

        def __call__(self, record):
            if record["riddle"] == "?":
                raise RecordRefusedError(Reason.EMPTY, "no riddle")
            turns = (("user", record["riddle"]), ("assistant", record["answer"][::-1]))
            return Conversation(
                messages=tuple(Message(role=role, content=text) for role, text in turns)
            )


    def shout(record):
        return record["riddle"].upper()


    shout.task = "pretrain"


    def wrong(record):
        return "a text"


    wrong.task = "sft"


    def untold(record):
        return None


    def odd(record):
        return None


    odd.task = "poetry"
"""
_ENTRY_POINTS = """
    [llm_data.handlers]
    riddles = riddle_handlers:Riddles
    shout = riddle_handlers:shout
    wrong = riddle_handlers:wrong
    untold = riddle_handlers:untold
    odd = riddle_handlers:odd
    lost = riddle_handlers:nothing
"""
_RIDDLES = [{"riddle": f"what {i}", "answer": f"{i}ß"} for i in range(40)]


@pytest.fixture
def own_handlers(tmp_path, monkeypatch):
    """A package with handlers, as an installer would lay it out, for this process and others."""
    site = tmp_path / "site"
    info = site / "riddles-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "riddle_handlers.py").write_text(textwrap.dedent(_OWN))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: riddles\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(textwrap.dedent(_ENTRY_POINTS))
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))


@pytest.fixture
def riddles(tmp_path):
    """Records that no format of ours fits."""
    file = tmp_path / "riddles.jsonl"
    lines = [json.dumps(record) for record in [*_RIDDLES, {"riddle": "?"}]]
    file.write_text("\n".join(lines))
    return file


@pytest.mark.usefixtures("own_handlers")
@pytest.mark.parametrize("workers", [1, 2])
def test_an_own_handler_makes_samples_in_every_process(tmp_path, riddles, bytes_tokenizer, workers):
    config = PreprocessConfig(
        inputs=[riddles],
        tokenizer=bytes_tokenizer,
        output=tmp_path / "out",
        task=Task.SFT,
        handler="riddles",
        template="chatml",
        workers=workers,
    )
    preprocess(config)
    dataset = verify_samples(tmp_path / "out")
    assert dataset.manifest.num_samples == len(_RIDDLES)
    assert dataset.manifest.drops == {"empty": 1}
    tokenizer = Tokenizer.from_file(str(bytes_tokenizer / "tokenizer.json"))
    for number, record in enumerate(_RIDDLES):
        row = dataset.row(number)
        learned = row["input_ids"][np.asarray(row["labels"]) != -100]
        assert tokenizer.decode(learned.tolist()).startswith(record["answer"][::-1])


@pytest.mark.usefixtures("own_handlers")
def test_an_own_handler_makes_texts_to_pretrain_on(tmp_path, riddles, bytes_tokenizer):
    output = tmp_path / "out"
    preprocess(
        PreprocessConfig(
            inputs=[riddles], tokenizer=bytes_tokenizer, output=output, handler="shout", workers=1
        )
    )
    dataset = open_token_dataset(tmp_path / "out_text_document")
    tokenizer = Tokenizer.from_file(str(bytes_tokenizer / "tokenizer.json"))
    texts = [tokenizer.decode(dataset.sequence(i).tolist()) for i in range(len(dataset))]
    assert texts == [*(record["riddle"].upper() for record in _RIDDLES), "?"]


@pytest.mark.usefixtures("own_handlers")
def test_own_handlers_are_told_their_tasks_and_their_mistakes():
    assert tasks_of_handler("riddles") == (Task.SFT,)
    assert tasks_of_handler("shout") == (Task.PRETRAIN,)
    assert handler_origin("riddles") == "riddle_handlers:Riddles of riddles 1.0"
    reader = record_reader(_config(task=Task.SFT, handler="riddles"), [])
    assert reader.gives is Conversation
    mistakes = {
        "lost": "riddle_handlers:nothing of riddles does not load",
        "untold": "is a function, want something to call .* that has the attribute task",
        "odd": "its task is 'poetry', want pretrain, sft",
        "riddle": "did you mean 'riddles'",
    }
    for name, message in mistakes.items():
        with pytest.raises(DataError, match=message):
            tasks_of_handler(name)
    with pytest.raises(UsageError, match="handler wrong gives str, want Conversation for its task"):
        _read({"riddle": "x"}, task=Task.SFT, handler="wrong")
    with pytest.raises(UsageError, match="--format and --map-keys have no meaning for it"):
        _read({"riddle": "x"}, task=Task.SFT, handler="riddles", format="openai")


def test_the_guide_names_every_handler_with_its_tasks():
    guide = (Path(__file__).parents[3] / "packages/llm-data/RECORDS.md").read_text()
    rows = [line.split("|") for line in guide.split("## Handlers")[1].splitlines() if "`" in line]
    told = {
        name: tuple(row[2].replace(" ", "").split(","))
        for row in rows
        if len(row) > 3
        for name in re.findall(r"`(\w+Handler)`", row[1])
    }
    assert told == {name: tasks_of_handler(name) for name in _NAMES}
