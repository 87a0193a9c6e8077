"""Useful tokens a second of each step of TRL's SFTTrainer on a sample dataset of llm-data.

Prints one JSON list. The same model, batch, precision and optimizer as llm-train's run.
"""

import argparse
import json
import tempfile
import time

import torch
import transformers
import trl
from datasets import Dataset
from megatron.core.datasets.indexed_dataset import IndexedDataset


class Clock(transformers.TrainerCallback):
    """Seconds of each step."""

    def __init__(self):
        self.seconds, self.began = [], 0.0

    def on_step_begin(self, *_args, **_kwargs):
        self.began = time.perf_counter()

    def on_step_end(self, *_args, **_kwargs):
        self.seconds.append(time.perf_counter() - self.began)


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
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(2)
    ids, labels = (
        IndexedDataset(f"{options.data}_packed_{name}_document") for name in ("input_ids", "labels")
    )
    rows = [
        {
            "input_ids": ids[row].tolist(),
            "completion_mask": [int(label != -100) for label in labels[row]],
        }
        for row in range(len(ids))
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
        clock = Clock()
        trainer.add_callback(clock)
        trainer.data_collator = Counting(trainer.data_collator)
        trainer.train()
    tokens = trainer.data_collator.tokens
    print(json.dumps([t / s for t, s in zip(tokens, clock.seconds, strict=False)]))


if __name__ == "__main__":
    main()
