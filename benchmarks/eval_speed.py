"""Scoring speed and memory: our `hf` engine against lm-eval's, the same requests and weights.

    python benchmarks/eval_speed.py --items 40
    python benchmarks/eval_speed.py --items 40 --ours scorer    # llm-infer's, through --scorer

Requests over a random 19M-parameter Qwen3 with 48k rows of vocabulary, fp32, CPU:
- mmlu: four-choice questions after five shared examples;
- endings: four endings of several tokens (HellaSwag);
- generation: prompts of mixed lengths, of which each is continued to its limit, one of four;
- answers: the same prompts with one limit, ended by a stop string, so at all lengths;
- few-shot: questions after eight shared worked examples, ended by a stop string (GSM8K, BBH).
Each side in a process of its own, on one thread, at lm-eval's
batch size 8. Seconds are of CPU time, which other programs on the machine change little.
Bars: MMLU 10x items/s and a quarter of the peak memory, endings 2x, generations 2x.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KINDS = ("mmlu", "endings", "generation", "answers", "few-shot")
GENERATED = KINDS[2:]
VOCABULARY = 48_000


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--ours", choices=["hf", "scorer"], default="hf")
    parser.add_argument("--side", choices=["hf", "scorer", "lm-eval"])
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    if options.side:
        measure(options.side, options.kinds[0], options.items, options.model)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder))
        print(f"{'':<12}{'ours':>24}{'lm-eval hf':>24}   speed  memory  largest difference")
        for kind in options.kinds:
            compare(kind, options.items, model, ours=options.ours)


def compare(kind, items, model, *, ours):
    found = []
    for side in (ours, "lm-eval"):
        command = [sys.executable, __file__, "--side", side, "--kinds", kind]
        command += ["--items", str(items), "--model", str(model)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found.append(json.loads(output.splitlines()[-1]))
    ours, theirs = found
    if kind in GENERATED:
        same = sum(a == b for a, b in zip(ours["answers"], theirs["answers"], strict=True))
        difference = f"{same} of {len(ours['answers'])} texts equal"
    else:
        pairs = zip(ours["answers"], theirs["answers"], strict=True)
        difference = f"{max(abs(a[0] - b[0]) for a, b in pairs):.1e}"
    shown = [f"{side['rate']:.2f}/s {side['peak_mib']:.0f} MiB" for side in found]
    print(
        f"{kind:<12}{shown[0]:>24}{shown[1]:>24}{ours['rate'] / theirs['rate']:7.1f}x"
        f"{ours['peak_mib'] / theirs['peak_mib']:7.2f}x  {difference}"
    )


def make_model(folder):
    """A random model, and a tokenizer of the words the requests are made of."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([" ".join(words())] * 2, trainer)
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=768, num_hidden_layers=8,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=2048,
        tie_word_embeddings=True, eos_token_id=0, bos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def words():
    draw = random.Random(0)
    letters = "abcdefghijklmnoprstuvw"
    return ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(3000)]


def requests(kind, items):
    draw, known = random.Random(1), words()

    def text(count):
        return " ".join(draw.choices(known, k=count))

    if kind == "mmlu":

        def question():
            choices = "".join(f"\n{letter}. {text(6)}" for letter in "ABCD")
            return f"{text(40)}{choices}\nAnswer:"

        examples = "".join(f"{question()} {draw.choice('ABCD')}\n\n" for _ in range(5))
        asked = [f"{examples}{question()}" for _ in range(items)]
        return "loglikelihood", [(q, f" {letter}") for q in asked for letter in "ABCD"]
    if kind == "endings":
        asked = [text(draw.randint(20, 60)) for _ in range(items)]
        return "loglikelihood", [
            (q, f" {text(draw.randint(5, 25))}") for q in asked for _ in "ABCD"
        ]
    sizes, stop, beginning, words_asked = (16, 32, 64, 128), "\n\n", "", (10, 150)
    if kind != "generation":
        # A random model writes every letter now and then.
        sizes, stop = (128,), "a"
    if kind == "few-shot":
        beginning = "".join(f"Question: {text(40)}\nAnswer: {text(40)}\n\n" for _ in range(8))
        words_asked = (20, 60)
    return "generate_until", [
        (
            f"{beginning}{text(draw.randint(*words_asked))}",
            {"until": [stop], "max_gen_toks": size, "do_sample": False},
        )
        for size in draw.choices(sizes, k=items)
    ]


def measure(side, kind, items, folder):
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from lm_eval.api.instance import Instance

    torch.set_num_threads(1)
    method, asked = requests(kind, items)
    instances = [Instance(method, {}, request, 0) for request in asked]
    lm = opened(side, folder)
    start = time.process_time()
    answers = getattr(lm, method)(instances)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rate": items / seconds, "peak_mib": peak, "answers": answers}))


def opened(side, folder):
    """A model of the harness."""
    from llm_eval.edge import model_folder
    from llm_eval.edge.engines import EngineChoice
    from llm_eval.harness.engine import Serial
    from llm_eval.harness.journaled import JournaledLM

    if side == "lm-eval":
        from lm_eval.models.huggingface import HFLM

        model, tokenizer = model_folder.load(folder, device="cpu", dtype="float32")
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
    engine = EngineChoice(
        scorer="hf" if side == "hf" else "llm-infer", model=folder, device="cpu", dtype="float32",
        batch_size=8, max_length=None, threads=1, base_url=None, retries=0,
    ).open()  # fmt: skip
    return JournaledLM(engine, Serial(engine), Memory())


class Memory(dict):
    """A journal that forgets."""

    def lookup(self, key):
        return self.get(key)

    def append(self, answers):
        self.update(answers)


if __name__ == "__main__":
    main()
