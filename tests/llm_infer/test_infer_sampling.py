import pytest

from llm_infer.sampling import Sampling


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: found 0, want at least 1"),
        ({"temperature": -0.1}, "temperature: found -0.1, want >= 0"),
        ({"temperature": float("nan")}, "temperature: found nan"),
        ({"temperature": float("inf")}, "temperature: found inf"),
        ({"top_k": -1}, "top_k: found -1"),
        ({"top_p": 0.0}, r"top_p: found 0.0, want in \(0, 1\]"),
        ({"top_p": 1.5}, "top_p: found 1.5"),
        ({"seed": -1}, "seed: found -1"),
        ({"stop": ("a", "")}, "stop: found"),
        ({"min_p": 1.5}, "min_p: found 1.5"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty: found 0.0, want in \[0.01, 100\]"),
        ({"presence_penalty": 2.5}, "presence_penalty: found 2.5"),
        ({"frequency_penalty": -3.0}, "frequency_penalty: found -3.0"),
        ({"logit_bias": ((3, 101.0),)}, "logit_bias: found 3: 101.0"),
        ({"logit_bias": ((-1, 1.0),)}, "logit_bias: found -1: 1.0"),
        ({"logprobs": 21}, "logprobs: found 21"),
    ],
)
def test_a_number_out_of_range_is_named(change, said):
    with pytest.raises(ValueError, match=said):
        Sampling(**change)


def test_temperature_zero_is_greedy():
    assert Sampling().is_greedy
    assert not Sampling(temperature=0.1).is_greedy
