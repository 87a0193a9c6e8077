"""Useful tokens and seconds of each step of TRL's SFTTrainer, on the ids and labels of a file.

Prints them as JSON. The same model, batch, precision and optimizer as llm-train's run. It needs trl
and nothing of ours.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
import transformers
import trl
from datasets import Dataset

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Clock(transformers.TrainerCallback):
    """Seconds of each step."""

    def __init__(self, clock):
        self.clock, self.seconds, self.began = clock, [], 0.0

    def on_step_begin(self, *_args, **_kwargs):
        self.began = self.clock()

    def on_step_end(self, *_args, **_kwargs):
        self.seconds.append(self.clock() - self.began)


class Counting:
    """A collator that notes how many tokens each batch has without padding."""

    def __init__(self, inner):
        self.inner, self.tokens = inner, []

    def __call__(self, rows):
        batch = self.inner(rows)
        self.tokens.append(int(batch["attention_mask"].sum()))
        return batch


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True, help="lines of {ids, labels}")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [
        {
            "input_ids": one["ids"],
            "completion_mask": [int(label >= 0) for label in one["labels"]],
        }
        for one in map(json.loads, Path(options.data).read_text().splitlines())
    ]
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        config = trl.SFTConfig(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            max_length=None,
            learning_rate=1e-4,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            logging_steps=1000,
            disable_tqdm=True,
        )
        trainer = trl.SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        clock = Clock(CLOCKS[options.clock])
        trainer.add_callback(clock)
        trainer.data_collator = Counting(trainer.data_collator)
        trainer.train()
    tokens = trainer.data_collator.tokens[: len(clock.seconds)]
    print(json.dumps({"tokens": tokens, "seconds": clock.seconds}))


if __name__ == "__main__":
    main()
