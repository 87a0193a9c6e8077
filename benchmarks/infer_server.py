"""The server: seconds from the command to its first healthy answer, and the wait for a first token
while others are answered.

A random Qwen3-shaped model is made once (`--millions` of parameters). "Reading the weights" is one
pass over its files, `import torch` what Python takes for that alone. The goal is healthy within
2 s and one reading. A healthy server may still be putting weights in place, and its first answers
wait for that: "first token" is that of a request sent at once, counted from the command.
`generate` is the whole command for one token. Then `--clients` ask at once for `--tokens` tokens
each.

    .venv/bin/python benchmarks/infer_server.py --millions 500 --clients 1 8 32
"""

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

BIN = Path(sys.executable).parent
GOAL_S = 2.0
# Millions of parameters to hidden size and layers; 32 heads' worth of vocabulary is left out.
SHAPES = {10: (256, 8), 100: (640, 12), 500: (1280, 20)}
TEXT = "the quick brown fox jumps over the lazy dog " * 40


def make_model(folder: Path, millions: int) -> None:
    """A folder with random weights and a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

    words = {word: number for number, word in enumerate(sorted(set(TEXT.split())), start=2)}
    core = Tokenizer(models.WordLevel({"<unk>": 0, "<end>": 1} | words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>").save_pretrained(folder)
    hidden, layers = SHAPES[millions]
    config = Qwen3Config(
        vocab_size=32768, hidden_size=hidden, intermediate_size=3 * hidden,
        num_hidden_layers=layers, num_attention_heads=hidden // 64, num_key_value_heads=2,
        head_dim=64, max_position_embeddings=4096, eos_token_id=1, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def reading_s(folder: Path) -> float:
    """Seconds to read all weights once."""
    start = time.perf_counter()
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    return time.perf_counter() - start


@contextmanager
def server(folder: Path):
    """The address, and seconds from the command to the first healthy answer."""
    start = time.perf_counter()
    command = [str(BIN / "llm-infer"), "serve", str(folder), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            print(f"  {line.rstrip()}", file=sys.stderr)
            if found := re.search(r"http://\S+", line):
                with urllib.request.urlopen(f"{found[0]}/health"):
                    yield found[0], time.perf_counter() - start
                break
    finally:
        process.terminate()
        process.wait()


def generate_s(folder: Path) -> float:
    """Seconds that `llm-infer generate` takes for one token."""
    start = time.perf_counter()
    options = ("--device", "cpu", "--prompt", "the quick", "--max-new-tokens", "1")
    command = [str(BIN / "llm-infer"), "generate", str(folder), *options]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


async def first_token_s(port: int, model: str, number: int, tokens: int) -> tuple[float, float]:
    """Seconds to the first token of one answer, and to its end."""
    # A word that only this client says comes first, so that no prompt is found in a cache.
    prompt = [2 + number % 8, 2 + number // 8 % 8, *([3] * 126)]
    fields = {"model": model, "prompt": prompt, "max_tokens": tokens, "stream": True, "seed": 1}
    body = json.dumps(fields).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    start = time.perf_counter()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    kind = "Content-Type: application/json\r\nConnection: close\r\n\r\n"
    writer.write((head + kind).encode() + body)
    await reader.readuntil(b"data: ")
    first = time.perf_counter() - start
    rest = await reader.read()
    writer.close()
    assert b"[DONE]" in rest, rest[-300:]
    return first, time.perf_counter() - start


async def load(url: str, model: str, clients: int, tokens: int) -> list[tuple[float, float]]:
    """All clients at once."""
    port = int(url.rsplit(":", 1)[1])
    return await asyncio.gather(
        *(first_token_s(port, model, number, tokens) for number in range(clients))
    )


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=int, choices=SHAPES, default=100)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "model"
        make_model(folder, asked.millions)
        starts, firsts, commands = list[float](), list[float](), list[float]()
        for _ in range(asked.rounds):
            with server(folder) as (url, healthy_s):
                starts.append(healthy_s)
                ((first_s, _),) = asyncio.run(load(url, folder.name, 1, 1))
                firsts.append(healthy_s + first_s)
            commands.append(generate_s(folder))
        torch_s = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        torch_s = time.perf_counter() - torch_s
        median, weights_s = statistics.median(starts), reading_s(folder)
        head = "healthy, median s | first token | generate | reading weights | import torch | goal"
        print(f"| {asked.millions} M | {head} |")
        print("|---|---|---|---|---|---|---|")
        met = "met" if median <= GOAL_S + weights_s else "missed"
        numbers = (median, *map(statistics.median, (firsts, commands)), weights_s, torch_s)
        print(f"| start | {' | '.join(f'{one:.2f}' for one in numbers)} | {met} |\n")
        print("| clients at once | first token, median s | slowest s | tokens/s of all |")
        print("|---|---|---|---|")
        with server(folder) as (url, _):
            asyncio.run(load(url, folder.name, 1, 4))
            for clients in asked.clients:
                start = time.perf_counter()
                found = asyncio.run(load(url, folder.name, clients, asked.tokens))
                rate = clients * asked.tokens / (time.perf_counter() - start)
                firsts = [first for first, _ in found]
                line = f"{statistics.median(firsts):.2f} | {max(firsts):.2f} | {rate:.1f}"
                print(f"| {clients} | {line} |")


if __name__ == "__main__":
    main()
