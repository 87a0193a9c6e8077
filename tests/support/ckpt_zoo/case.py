"""One tiny model of a family: how its folder is made and what its logits ought to be."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """A tiny model. `config` are arguments of transformers' config class of `family`.

    A family that transformers does not ship gives `write` (a folder from a seed and a dtype) and
    `logits` (of a folder and tokens [B, T]) of its own. `layouts` are those its sizes divide by.
    """

    family: str
    config: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    write: Callable[[Path, int, torch.dtype], None] | None = None
    logits: Callable[[Path, torch.Tensor], torch.Tensor] | None = None
    max_tp: int = 2
    max_ep: int = 1
    max_pp: int = 2

    @property
    def id(self) -> str:
        """Name in a test's id."""
        return f"{self.family}-{self.name}" if self.name else self.family

    def save(self, folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
        """Write the folder."""
        if self.write is not None:
            self.write(folder, seed, dtype)
        else:
            self.build(seed=seed, dtype=dtype).save_pretrained(folder)
        return folder

    def build(self, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
        """The transformers model, every weight random, norms and biases too."""
        import transformers

        torch.manual_seed(seed)
        config = transformers.AutoConfig.for_model(self.family, **self.config)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                randomize(name, parameter)
            for name, buffer in model.named_buffers():
                if name.endswith("e_score_correction_bias"):
                    buffer.uniform_(-0.2, 0.2)
        return model.to(dtype)

    def expected_logits(self, folder: Path, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, T, V] in fp32 of tokens [B, T], by code that is not ours."""
        if self.logits is not None:
            return self.logits(folder, tokens)
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        with torch.no_grad():
            return model(tokens, use_cache=False).logits.float()


def randomize(name: str, parameter: torch.Tensor) -> None:
    """Norm weights around 1, matrices of the size that keeps activations near 1."""
    if ("norm" in name or ".ln_" in name) and name.endswith("weight"):
        parameter.uniform_(0.5, 1.5)
    elif parameter.dim() < 2:
        parameter.uniform_(-0.3, 0.3)
    else:
        parameter.normal_(0.0, 0.1)


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """A config.json by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
