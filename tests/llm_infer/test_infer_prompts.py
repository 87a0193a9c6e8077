import json

import pytest

from llm_infer.errors import InferError
from llm_infer.prompts import answer_line, parse_prompts


def test_other_keys_are_kept_beside_the_answer():
    (prompt,) = parse_prompts('\n{"id": 7, "prompt": "hé"}\n', "in.jsonl")
    assert (prompt.text, prompt.where) == ("hé", "in.jsonl:2")
    assert json.loads(answer_line(prompt, {"text": "llo"})) == {
        "id": 7,
        "prompt": "hé",
        "text": "llo",
    }


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "in.jsonl:2: not JSON"),
        ("3", "in.jsonl:2: found int, want a JSON object"),
        ('{"text": "x"}', "in.jsonl:2: want a string under 'prompt'; found keys text"),
        ('{"prompt": null}', "in.jsonl:2: want a string under 'prompt'; found NoneType"),
        ('{"prompt": "x", "text": "y"}', "in.jsonl:2: 'text' is where the answer goes"),
        (r'{"prompt": "x\ud83d"}', "in.jsonl:2: character 14 is U\\+D83D, half of a pair"),
        (r'{"prompt": "x", "id": "\udcff"}', r"in.jsonl:2: character 24 is U\+DCFF"),
    ],
)
def test_a_bad_line_is_named_with_what_was_found(line, said):
    with pytest.raises(InferError, match=said):
        list(parse_prompts('{"prompt": "fine"}\n' + line, "in.jsonl"))
