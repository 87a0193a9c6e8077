import json
import math

from llm_eval.results import stable_results, to_json, to_jsonl


def test_times_and_machines_are_left_out():
    found = {"results": {"t": 1}, "date": 5.0, "pretty_env_info": "Linux", "samples": {}}
    assert stable_results(found) == {"results": {"t": 1}}


def test_numbers_json_cannot_hold_become_null():
    written = to_json({"a": math.inf, "b": [math.nan, 0.1], "c": (1, True, None)})
    assert json.loads(written) == {"a": None, "b": [None, 0.1], "c": [1, True, None]}


def test_floats_survive_to_the_last_bit():
    values = [0.1 + 0.2, 1e-320, -math.pi * 1e17]
    assert json.loads(to_json(values)) == values


def test_lines_hold_one_object_each_and_keep_their_script():
    assert to_jsonl([{"t": "你\n好"}, {}]) == '{"t": "你\\n好"}\n{}\n'.encode()


def test_functions_of_a_task_are_written_alike_in_every_process():
    """hellaswag's configuration has one: as text it holds an address."""

    def process_docs():
        pass

    text = "a leak at 0x7f stays, in a text"
    written = json.loads(to_json({"of": process_docs, "bound": [{}.get], "text": text}))
    name = "test_functions_of_a_task_are_written_alike_in_every_process.<locals>.process_docs"
    assert written == {
        "of": f"<function {name}>",
        "bound": ["<built-in method get of dict object>"],
        "text": text,
    }
