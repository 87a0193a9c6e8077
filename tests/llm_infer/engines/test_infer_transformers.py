import threading
import time

import pytest

from llm_infer.sampling import Sampling

PROMPT = "def read(path):"


def _tokens(loaded, **sampling):
    prompt = loaded.tokenizer.encode(PROMPT)
    return list(loaded.engine.generate(prompt, Sampling(**sampling)))


def _theirs(folder, **settings):
    """New tokens of transformers' own generate, end token removed."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    whole = model.generate(**inputs, **settings, pad_token_id=0)[0].tolist()
    new = whole[inputs["input_ids"].shape[1] :]
    return new[:-1] if new[-1] == 0 else new


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_greedy_tokens_are_those_of_transformers(models, loaded, family):
    expected = _theirs(models[family], do_sample=False, max_new_tokens=30)
    assert len(set(expected)) > 3
    assert _tokens(loaded[family], max_new_tokens=30) == expected


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_drawn_tokens_are_those_of_transformers_with_the_same_seed(models, loaded, family):
    import torch

    torch.manual_seed(5)
    settings = {"temperature": 1.3, "top_k": 20, "top_p": 0.9}
    expected = _theirs(models[family], do_sample=True, max_new_tokens=20, **settings)
    assert _tokens(loaded[family], max_new_tokens=20, seed=5, **settings) == expected


def test_a_seed_repeats_itself_and_another_does_not(loaded):
    draw = {"temperature": 1.0, "max_new_tokens": 20}
    first = _tokens(loaded["qwen3"], seed=1, **draw)
    assert _tokens(loaded["qwen3"], seed=1, **draw) == first
    assert _tokens(loaded["qwen3"], seed=2, **draw) != first


def test_the_random_state_of_the_caller_is_left_alone(loaded):
    import torch

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    _tokens(loaded["qwen3"], temperature=1.0, max_new_tokens=5)
    assert torch.rand(1) == expected


def test_top_k_of_one_is_greedy_at_any_temperature(loaded):
    greedy = _tokens(loaded["llama"], max_new_tokens=10)
    assert _tokens(loaded["llama"], max_new_tokens=10, temperature=5.0, top_k=1) == greedy


def test_settings_of_the_folder_do_not_leak_in(models, tmp_path, loaded):
    import json
    import shutil

    from llm_infer.edge.model_folder import load

    folder = shutil.copytree(models["llama"], tmp_path / "m")
    settings = {"eos_token_id": 0, "do_sample": True, "temperature": 9.0, "repetition_penalty": 5.0}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    other = load(folder, device="cpu", dtype="float32")
    assert _tokens(other, max_new_tokens=20) == _tokens(loaded["llama"], max_new_tokens=20)


def test_any_of_several_end_tokens_ends_and_is_not_given(models, tmp_path, loaded):
    import shutil

    from llm_infer.edge.model_folder import load
    from tiny_lm import edit_json

    tokens = _tokens(loaded["qwen3"], max_new_tokens=12)
    end = next(token for i, token in enumerate(tokens) if i > 1 and token not in tokens[:i])
    folder = shutil.copytree(models["qwen3"], tmp_path / "m")
    edit_json(folder / "generation_config.json", eos_token_id=[0, end])
    other = load(folder, device="cpu", dtype="float32")
    assert _tokens(other, max_new_tokens=12) == tokens[: tokens.index(end)]


def test_the_context_is_never_overrun(loaded):
    prompt = loaded["llama"].tokenizer.encode(PROMPT)
    tokens = list(loaded["llama"].engine.generate(prompt, Sampling(max_new_tokens=500)))
    assert len(prompt) + len(tokens) <= 64


def test_closing_the_stream_ends_the_computation(loaded):
    before = threading.active_count()
    prompt = loaded["llama"].tokenizer.encode("a")
    stream = loaded["llama"].engine.generate(prompt, Sampling(max_new_tokens=60))
    next(stream)
    start = time.perf_counter()
    stream.close()
    assert threading.active_count() == before
    assert time.perf_counter() - start < 30


def test_an_error_of_the_model_reaches_the_caller(loaded):
    with pytest.raises(IndexError):
        list(loaded["llama"].engine.generate([999999], Sampling()))
