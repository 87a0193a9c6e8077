"""`llm-infer serve --tp 2` of a Megatron v2 checkpoint in 8 bits: one launch, several requests."""

import json
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from openai import OpenAI
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from server_process import LLM_INFER, served

PROMPTS = ("def read(", "Grüße", "0123456789")
# Whose inputs are divided, so that each rank has scales of its own.
ROW_PARALLEL = ("o_proj", "down_proj")
SCHEMA = {
    "type": "object",
    "properties": {"sizes": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}},
    "required": ["sizes"],
    "additionalProperties": False,
}


def _rounded(weight):
    """Symmetric, a scale for each output channel: largest / 127."""
    scale = weight.abs().amax(-1, keepdim=True) / 127
    return torch.round(weight / scale) * scale


@pytest.fixture(scope="module")
def expected(models, tmp_path_factory):
    """Greedy texts of transformers with weights that are rounded as each of two ranks rounds, and
    the log-probabilities of their tokens.
    """
    folder = shutil.copytree(models["qwen3"], tmp_path_factory.mktemp("rounded") / "hf")
    path = folder / "model.safetensors"
    weights = load_file(path)
    for name, weight in weights.items():
        if weight.dim() == 2:
            pieces = weight.chunk(2 if any(one in name for one in ROW_PARALLEL) else 1, dim=1)
            weights[name] = torch.cat([_rounded(piece) for piece in pieces], dim=1)
    save_file(weights, path, metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = {}
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
        whole = model.generate(ids, do_sample=False, max_new_tokens=12, pad_token_id=0)
        answer = whole[0, ids.shape[1] :]
        with torch.no_grad():
            logprobs = model(whole).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
        found[prompt] = (
            tokenizer.decode(answer, skip_special_tokens=True),
            pytest.approx(logprobs.gather(1, answer[:, None])[:, 0].tolist(), abs=1e-4),
        )
    return found


@pytest.fixture(scope="module")
def checkpoint(models, tmp_path_factory):
    from llm_ckpt.cli import main

    there = tmp_path_factory.mktemp("v2") / "mcore"
    words = ["convert", str(models["qwen3"]), "--output", str(there), "--to", "mcore"]
    done = CliRunner().invoke(main, [*words, "--layout", "v2"])
    assert done.exit_code == 0, done.output
    return there


def _children(pid):
    """Process ids of a process's children."""
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(one) for path in found for one in path.read_text().split()]


def test_two_ranks_serve_a_v2_checkpoint_in_8_bits_and_leave_nothing(checkpoint, expected):
    command = (LLM_INFER, "serve", checkpoint, "--port", "0", "--device", "cpu", "--name", "tiny")
    options = ("--tp", "2", "--quantization", "int8", "--dtype", "float32")
    with served([*map(str, command), *options]) as server:
        ranks = _children(server.process.pid)
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

        def answer(prompt, **fields):
            fields = {"max_tokens": 12, "temperature": 0, "logprobs": 0} | fields
            (choice,) = client.completions.create(model="tiny", prompt=prompt, **fields).choices
            return choice.text, choice.logprobs.token_logprobs

        assert {prompt: answer(prompt) for prompt in PROMPTS} == expected
        with ThreadPoolExecutor(4) as pool:
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
            held = {"response_format": form}
            guided = pool.submit(answer, "a", extra_body=held, temperature=2, seed=1, max_tokens=60)
            assert list(pool.map(answer, PROMPTS)) == list(expected.values())
            assert set(json.loads(guided.result()[0])) == {"sizes"}
        with client.completions.create(
            model="tiny", prompt="a", max_tokens=60, stream=True
        ) as stream:
            next(iter(stream))
        assert answer(PROMPTS[0]) == expected[PROMPTS[0]]
        client.close()
        assert len(ranks) == 1
        server.process.terminate()
        assert server.process.wait(30) == 0
        assert not Path(f"/proc/{ranks[0]}").exists()
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", server.port))
