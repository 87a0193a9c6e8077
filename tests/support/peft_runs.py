"""Adapters that peft makes and trains, and runs of ours that begin as them, on the same samples."""

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from fork_ranks import run_ranks
from llm_train.edge import checkpoint_files
from sft_data import IGNORED, make_chats

CHATS = make_chats(6)
LINEARS = ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]
STEPS, RATE, EPS = 2, 1e-2, 1e-2
# No key has one: of the three modules of a weight two have adapters, each with an A of its own.
MODULES = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def write_by_peft(base, folder, **options):
    """Adapters with random A and B."""
    torch.manual_seed(0)
    settings = peft.LoraConfig(
        r=4,
        lora_alpha=12,
        init_lora_weights=False,
        **{"target_modules": MODULES, "task_type": "CAUSAL_LM", **options},
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    peft.get_peft_model(model, settings).save_pretrained(folder)
    return folder


def logits_by_peft(base, adapter):
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model = peft.PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model(torch.tensor([CHATS[0][0]])).logits


def trained_by_peft(base, adapter):
    """Losses of two steps over all samples, and the adapter's tensors behind them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model = peft.PeftModel.from_pretrained(model, adapter, is_trainable=True)
    learning = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(learning, lr=RATE, betas=(0.9, 0.95), eps=EPS, weight_decay=0.0)
    count = sum(label != IGNORED for _, labels in CHATS for label in labels[1:])
    losses = []
    for _ in range(STEPS):
        adam.zero_grad()
        total = 0.0
        for ids, labels in CHATS:
            ids, labels = torch.tensor([ids]), torch.tensor([labels])
            out = model(input_ids=ids, labels=labels, num_items_in_batch=torch.tensor(count))
            out.loss.backward()
            total += out.loss.item()
        adam.step()
        losses.append(total)
    return losses, peft.get_peft_model_state_dict(model)


def assert_as_peft(found, wanted):
    """Losses and tensors of a run are those of peft's training."""
    (losses, tensors), (wanted_losses, wanted_tensors) = found, wanted
    assert losses == pytest.approx(wanted_losses, abs=1e-5)
    assert tensors.keys() == wanted_tensors.keys()
    for name, tensor in wanted_tensors.items():
        torch.testing.assert_close(tensors[name], tensor, atol=1e-5, rtol=1e-5)


def assert_learned(tensors, folder):
    """Every tensor of a PEFT folder has changed."""
    for name, before in load_file(folder / "adapter_model.safetensors").items():
        assert not torch.allclose(tensors[name], before, atol=1e-4), name


def logits_of_state(base, adapter, tensors):
    """What peft has with a folder's settings and other tensors."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model = peft.PeftModel.from_pretrained(model, adapter)
    peft.set_peft_model_state_dict(model, tensors)
    with torch.no_grad():
        return model(torch.tensor([CHATS[0][0]])).logits


def document_of(base, data, save, load, **lora):
    return {
        "stage": "sft",
        "model": {"load": str(base)},
        "data": {"train": [str(data)]},
        "train": {"max_steps": STEPS, "seq_length": 48, "global_batch_size": len(CHATS)},
        "optimizer": {
            "lr": RATE,
            "eps": EPS,
            "weight_decay": 0.0,
            "clip_grad": 0.0,
            "decay": "constant",
        },
        "lora": {"rank": 4, "alpha": 12, "target_modules": LINEARS, "load": str(load), **lora},
        "save": {"path": str(save)},
        "device": "cpu",
    }


def train(document, world_size=1):
    """The losses of a run, and the adapter that it wrote."""

    def rank(_rank):
        from llm_train.config_parse import parse
        from llm_train.edge.run import run

        run(parse(document, [], "test"))

    run_ranks(rank, world_size)
    root = Path(document["save"]["path"])
    lines = map(json.loads, (root / "metrics.jsonl").read_text().splitlines())
    steps = document["train"]["max_steps"]
    folder = checkpoint_files.adapter_folder(root, steps)
    return [line["loss"] for line in lines], load_file(folder / "adapter_model.safetensors")
