"""The same model in transformers' Trainer, with its own defaults but for what the others have too.

`python trainer.py MODEL.json --steps N --batch B --seq T --threads N` prints a list of seconds.
"""

import json
import tempfile
import time

import torch
from plain import arguments
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


class Clock(TrainerCallback):
    """Seconds of each optimizer step."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *_args, **_kwargs):
        self.began = time.perf_counter()

    def on_step_end(self, *_args, **_kwargs):
        self.seconds.append(time.perf_counter() - self.began)


class RandomTokens(torch.utils.data.Dataset):
    def __init__(self, rows, seq, vocab_size):
        self.tokens = torch.randint(0, vocab_size, (rows, seq))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def train(model, steps, batch, seq, threads):
    """Seconds of each step."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    document = json.loads(model.read_text())
    config = AutoConfig.for_model(document.pop("model_type"), **document)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch,
            max_steps=steps,
            learning_rate=1e-3,
            weight_decay=0.1,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        )
        Trainer(
            model=AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"),
            args=settings,
            train_dataset=RandomTokens(steps * batch, seq, config.vocab_size),
            callbacks=[clock],
        ).train()
    return clock.seconds


if __name__ == "__main__":
    print(json.dumps(train(**vars(arguments()))))
