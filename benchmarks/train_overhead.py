"""Tokens a second of the quickstart's model: llm-train against the same model in plain PyTorch.

One run measures both in turn, `--rounds` times, on the same number of cores: plain PyTorch in one
process with two threads, llm-train in one process with two threads, and llm-train as the quickstart
runs it, two tensor-parallel processes with one thread each. It prints medians over all steps but
the first five of each round, and ours / plain.

    .venv/bin/python benchmarks/train_overhead.py --rounds 3
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "examples" / "quickstart" / "model.json"
BIN = Path(sys.executable).parent
WARM_UP_STEPS = 5


def plain(steps, batch, seq, threads):
    """Seconds of each step of a plain PyTorch loop over random tokens."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    c = json.loads(MODEL.read_text())
    hidden, heads, groups = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    width, ffn, eps = c["head_dim"], c["intermediate_size"], c["rms_norm_eps"]

    class Norm(torch.nn.Module):
        def __init__(self, size):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(size))

        def forward(self, x):
            return F.rms_norm(x, self.weight.shape, self.weight, eps)

    def linear(inputs, outputs):
        layer = torch.nn.Linear(inputs, outputs, bias=False)
        torch.nn.init.normal_(layer.weight, 0.0, 0.02)
        return layer

    half = torch.arange(0, width, 2) / width
    angles = torch.outer(torch.arange(seq), c["rope_parameters"]["rope_theta"] ** -half)
    cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))

    def rotate(x):
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = Norm(hidden), Norm(hidden)
            self.q_norm, self.k_norm = Norm(width), Norm(width)
            self.qkv = linear(hidden, (heads + 2 * groups) * width)
            self.out = linear(heads * width, hidden)
            self.up, self.down = linear(hidden, 2 * ffn), linear(ffn, hidden)

        def forward(self, x):
            size = x.shape[0]
            qkv = self.qkv(self.norm1(x)).view(size, seq, heads + 2 * groups, width).transpose(1, 2)
            q, k, v = qkv.split([heads, groups, groups], 1)
            q, k = rotate(self.q_norm(q)), rotate(self.k_norm(k))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + self.out(y.transpose(1, 2).reshape(size, seq, -1))
            gate, up = self.up(self.norm2(x)).chunk(2, -1)
            return x + self.down(F.silu(gate) * up)

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(c["vocab_size"], hidden)
            self.blocks = torch.nn.ModuleList(Block() for _ in range(c["num_hidden_layers"]))
            self.norm, self.head = Norm(hidden), linear(hidden, c["vocab_size"])

        def forward(self, tokens, labels):
            x = self.embedding(tokens)
            for block in self.blocks:
                x = block(x)
            return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), labels.flatten())

    model = Decoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    seconds = []
    for _ in range(steps):
        tokens = torch.randint(0, c["vocab_size"], (batch, seq + 1))
        began = time.perf_counter()
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - began)
    return seconds


def ours(folder, data, ranks, steps, batch, seq, threads):
    """Seconds of each step that llm-train writes into metrics.jsonl."""
    overrides = [
        f"model.load={folder / 'hf'}",
        f"data.train=[{data}]",
        f"save.path={folder / f'run{ranks}'}",
        "save.resume=never",
        f"train.max_steps={steps}",
        f"train.seq_length={seq}",
        f"train.global_batch_size={batch}",
        f"train.micro_batch_size={batch}",
        "train.log_every=1000000",
        f"optimizer.warmup_steps={min(20, steps - 1)}",
        f"parallel.tp={ranks}",
    ]
    config = ROOT / "examples" / "quickstart" / "train.yaml"
    command = [BIN / "llm-train", "run", config, *overrides, "--nproc", str(ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
    lines = (folder / f"run{ranks}" / "metrics.jsonl").read_text().splitlines()
    return [record["step_time_s"] for record in map(json.loads, lines) if "loss" in record]


def make_inputs(folder):
    """The model as a Hugging Face folder, and this interpreter's own library as tokens."""
    corpus = Path(os.__file__).parent / "asyncio"

    def run(*command):
        subprocess.run([BIN / command[0], *command[1:]], check=True, stderr=subprocess.DEVNULL)

    pattern = ["--pattern", "*.py"]
    tokenizer, data = folder / "t", folder / "d"
    train_tokenizer = ["train-tokenizer", corpus, *pattern, "--vocab-size", "8192"]
    run("llm-data", *train_tokenizer, "--output", tokenizer)
    run("llm-data", "preprocess", corpus, *pattern, "--tokenizer", tokenizer, "--output", data)
    run("llm-ckpt", "init", MODEL, "--tokenizer", tokenizer, "--output", folder / "hf")
    return folder / "d_text_document"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=256)
    parser.add_argument("--only-plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    steps, batch, seq = options.steps, options.batch, options.seq
    if options.only_plain:
        print(json.dumps(plain(steps, batch, seq, threads=2)))
        return
    times = {"plain PyTorch, 2 threads": [], "llm-train, 2 threads": [], "llm-train, tp=2": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_inputs(folder)
        for number in range(options.rounds):
            child = [sys.executable, __file__, "--only-plain", "--steps", str(steps)]
            child += ["--batch", str(batch), "--seq", str(seq)]
            output = subprocess.run(child, check=True, stdout=subprocess.PIPE).stdout
            for key, seconds in zip(
                times,
                (
                    json.loads(output),
                    ours(folder, data, 1, steps, batch, seq, threads=2),
                    ours(folder, data, 2, steps, batch, seq, threads=1),
                ),
                strict=True,
            ):
                times[key] += seconds[WARM_UP_STEPS:]
            print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
    medians = {key: statistics.median(seconds) for key, seconds in times.items()}
    base = medians["plain PyTorch, 2 threads"]
    print(f"{'':26} {'s/step':>8} {'tokens/s':>9} {'time vs plain':>14}")
    for key, median in medians.items():
        print(f"{key:26} {median:8.3f} {batch * seq / median:9.0f} {median / base:13.2f}x")


if __name__ == "__main__":
    main()
