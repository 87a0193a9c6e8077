"""Generation on a CPU: llm-infer's native engine against transformers, in float32.

Each measurement runs both sides in turn, `--rounds` times, in one process with all cores:

- one stream: a prompt of 64 tokens, 64 new ones, against `generate`; and the same with 8-bit
  weights on our side (`--quantization int8`);
- 16 requests of mixed lengths: against `generate` on a left-padded batch (which goes on until the
  longest answer is done) and against `generate_batch`, transformers' continuous batching;
- a chat of 2000 tokens: time to the first token of the second turn beside that of the first.

    .venv/bin/python benchmarks/infer_generate.py --model 100m --rounds 3
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/infer_generate.py --cpu-time
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from importlib.metadata import entry_points
from pathlib import Path

import torch
from inference.models import CONTEXT, SHAPES, make

PROMPT_TOKENS, NEW_TOKENS = 64, 64
CHAT_TOKENS, QUESTION_TOKENS = 2000, 30
REQUESTS = 16


def open_ours(folder, quantization=None):
    """The native engine over the folder's weights."""
    from llm_infer.arch import parse
    from llm_infer.edge.operators import resolve
    from llm_infer.engines.native import BLOCK_TOKENS, Limits, NativeEngine
    from llm_infer.model.decoder import Decoder

    (provider,) = entry_points(group="llm_infer.weights")
    source = provider.load()(folder)
    device = torch.device("cpu")
    kernels = resolve("auto", device="cpu", dtype=torch.float32)
    decoder = Decoder(
        parse(source.arch, where=str(folder)),
        source,
        kernels,
        device=device,
        dtype=torch.float32,
        context=CONTEXT,
        block_tokens=BLOCK_TOKENS,
        quantization=quantization,
    )
    limits = Limits(cache_tokens=4 * CONTEXT)
    return NativeEngine(decoder, end_tokens=(), limits=limits, kernels=str(kernels))


def open_theirs(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def tokens(count, seed):
    draw = random.Random(seed)
    return [draw.randrange(32000) for _ in range(count)]


def seconds_of(function, clock):
    start_s = clock()
    function()
    return clock() - start_s


def ours_together(engine, requests):
    from llm_infer.sampling import Sampling

    answers = {}
    for prompt, count in requests:
        answers[engine.submit(prompt, Sampling(max_new_tokens=count))] = []
    while engine.has_work:
        for event in engine.step():
            answers[event.request].append(event.token)
    return list(answers.values())


def theirs_one(model, prompt, count):
    with torch.inference_mode():
        whole = model.generate(
            torch.tensor([prompt]), max_new_tokens=count, do_sample=False, pad_token_id=0
        )
    return whole[0, len(prompt) :].tolist()


def theirs_padded(model, requests):
    longest = max(len(prompt) for prompt, _ in requests)
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt, _ in requests])
    mask = torch.tensor(
        [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in requests]
    )
    count = max(count for _, count in requests)
    with torch.inference_mode():
        whole = model.generate(
            ids, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0
        )
    answers = whole[:, longest:].tolist()
    return [answer[:wanted] for answer, (_, wanted) in zip(answers, requests, strict=True)]


def theirs_continuous(model, requests):
    """`generate_batch` takes one length for all: requests of one length go in together."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    count = max(count for _, count in requests)
    config = GenerationConfig(max_new_tokens=count, do_sample=False, pad_token_id=0)
    # As many tokens as ours keeps; left alone it sizes its cache by the machine's memory.
    limits = ContinuousBatchingConfig(num_blocks=4 * CONTEXT // 256, max_batch_tokens=512)
    out = model.generate_batch(
        [prompt for prompt, _ in requests],
        generation_config=config,
        continuous_batching_config=limits,
    )
    if len(out) != len(requests):
        raise SystemExit(f"generate_batch answered {len(out)} of {len(requests)} requests")
    return [one.generated_tokens for one in out.values()]


def first_token(engine, prompt, clock):
    """Seconds to the first of 20 tokens, and the tokens."""
    from llm_infer.sampling import Sampling

    start_s = clock()
    stream = engine.generate(prompt, Sampling(max_new_tokens=20))
    first = next(stream)
    elapsed_s = clock() - start_s
    return elapsed_s, [first, *stream]


def compare(label, rounds, sides, clock):
    """Medians and spread of sides run in turn; the first is ours."""
    times = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            times[name].append(seconds_of(run, clock))
    ours = statistics.median(next(iter(times.values())))
    for name, seconds in times.items():
        median = statistics.median(seconds)
        spread = f"{min(seconds):.2f}-{max(seconds):.2f}"
        print(f"| {label} | {name} | {median:.2f} | {spread} | {median / ours:.2f}x |")
        sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SHAPES, default="100m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count the process's own seconds, with one thread: for a machine that others use too",
    )
    options = parser.parse_args()
    torch.set_num_threads(1 if options.cpu_time else options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    with tempfile.TemporaryDirectory() as name:
        size = make(Path(name), options.model)
        engine, model = open_ours(Path(name)), open_theirs(Path(name))
        int8 = open_ours(Path(name), "int8")
        prompt, rounds = tokens(PROMPT_TOKENS, 0), options.rounds
        # Warm up, and see that both sides say the same.
        same = ours_together(engine, [(prompt, 16)])[0] == theirs_one(model, prompt, 16)
        ours_together(int8, [(prompt, 16)])
        print(f"{size / 1e6:.0f} M parameters, {torch.get_num_threads()} threads, equal: {same}")
        print("| what | who | median s | spread s | time beside ours |")
        print("|---|---|---|---|---|")
        compare(
            "one stream",
            rounds,
            {
                "native": lambda: ours_together(engine, [(prompt, NEW_TOKENS)]),
                "generate": lambda: theirs_one(model, prompt, NEW_TOKENS),
            },
            clock,
        )
        compare(
            "one stream, int8",
            rounds,
            {
                "native, int8 weights": lambda: ours_together(int8, [(prompt, NEW_TOKENS)]),
                "generate, float32": lambda: theirs_one(model, prompt, NEW_TOKENS),
            },
            clock,
        )
        draw = random.Random(1)
        mixed = [(tokens(draw.randint(16, 256), n), draw.randint(16, 128)) for n in range(REQUESTS)]
        fresh = iter(range(10**6))

        def requests():
            """The same lengths with new first tokens, so that no cache helps."""
            return [([next(fresh) % 32000, *prompt[1:]], count) for prompt, count in mixed]

        compare(
            f"{REQUESTS} mixed requests",
            rounds,
            {
                "native": lambda: ours_together(engine, requests()),
                "padded generate": lambda: theirs_padded(model, requests()),
            },
            clock,
        )
        longest = max(count for _, count in mixed)
        compare(
            f"{REQUESTS} requests, {longest} tokens each",
            rounds,
            {
                "native": lambda: ours_together(engine, [(p, longest) for p, _ in requests()]),
                "generate_batch": lambda: theirs_continuous(model, requests()),
            },
            clock,
        )
        turns = []
        for seed in range(rounds):
            chat = tokens(CHAT_TOKENS, 1000 + seed)
            cold_s, answer = first_token(engine, chat, clock)
            question = tokens(QUESTION_TOKENS, 2000 + seed)
            warm_s, _ = first_token(engine, [*chat, *answer, *question], clock)
            turns.append((cold_s, warm_s))
        cold, warm = (statistics.median(times) for times in zip(*turns, strict=True))
        print(
            f"first token of a chat of {CHAT_TOKENS} tokens: {cold:.2f} s; of its second turn "
            f"{warm:.2f} s: {warm / cold:.3f}x"
        )


if __name__ == "__main__":
    main()
