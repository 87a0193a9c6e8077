"""Log-probabilities in events as servers send them, copied from the documents of their APIs."""

import pytest

from llm_infer.errors import InferError
from llm_infer.openai_api.answers import TokenText
from llm_infer.openai_api.outgoing import parse_event
from llm_infer.openai_api.told_logprobs import told_logprobs

LEGACY = {
    "tokens": [" a", "b"],
    "token_logprobs": [-0.5, -2],
    # vLLM tells the chosen token beside the N likeliest, in an object without an order.
    "top_logprobs": [{" c": -1.5, " a": -0.5}, {"b": -2.0, "x": -0.25, "y": -0.5}],
    "text_offset": [0, 2],
}
CHAT = {
    "content": [
        {
            "token": "é",
            "logprob": -0.5,
            "bytes": [195, 169],
            "top_logprobs": [{"token": "é", "logprob": -0.5}, {"token": "e", "logprob": -1.0}],
        }
    ]
}


def test_each_form_is_read_and_rivals_come_likeliest_first():
    assert told_logprobs(LEGACY, num_top=2) == (
        TokenText(" a", -0.5, ((" a", -0.5), (" c", -1.5))),
        TokenText("b", -2.0, (("x", -0.25), ("y", -0.5))),
    )
    assert told_logprobs(CHAT, num_top=5) == (TokenText("é", -0.5, (("é", -0.5), ("e", -1.0))),)
    assert told_logprobs(CHAT, num_top=0) == (TokenText("é", -0.5),)
    bare = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": None}
    assert told_logprobs(bare, num_top=0) == (TokenText("a", -1.0),)
    assert told_logprobs(None, num_top=3) == ()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ('{"tokens": ["a", "b"], "token_logprobs": [-1.0]}', "the log-probability 'None'"),
        ('{"tokens": [1], "token_logprobs": [-1.0]}', "the token '1'"),
        ('{"tokens": "a"}', "found 'a', want a list"),
        ("[1]", "want an object"),
        ('{"content": [{"token": "a"}]}', "the log-probability 'None'"),
    ],
)
def test_what_is_in_neither_form_is_an_error_that_names_the_server(found, said):
    with pytest.raises(InferError, match="somewhere: logprobs: found") as caught:
        parse_event(f'{{"choices": [{{"logprobs": {found}}}]}}', where="somewhere")
    assert said in str(caught.value)
