"""A decoder in plain PyTorch and a plain loop: what a step costs without any framework.

`python plain.py MODEL.json --steps N --batch B --seq T --threads N` prints a list of seconds.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F


def plain(model, steps, batch, seq, threads):
    """Seconds of each step of a plain PyTorch loop over random tokens."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    c = json.loads(model.read_text())
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

    decoder = Decoder()
    optimizer = torch.optim.AdamW(
        decoder.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1
    )
    seconds = []
    for _ in range(steps):
        tokens = torch.randint(0, c["vocab_size"], (batch, seq + 1))
        began = time.perf_counter()
        loss = decoder(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - began)
    return seconds


def main():
    """Print the seconds of each step."""
    options = arguments()
    print(json.dumps(plain(**vars(options))))


def arguments():
    """What both peers are told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    for name in ("steps", "batch", "seq", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
