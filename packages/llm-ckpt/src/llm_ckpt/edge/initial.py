"""A randomly initialised model as a weight source: every tensor is made when it is read."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_ckpt.arch import parse_arch_text
from llm_ckpt.blocks import Param
from llm_ckpt.edge.folder import Located, arch_from_file, companions
from llm_ckpt.errors import CheckpointError
from llm_ckpt.families import family_named
from llm_ckpt.families.family import RUNTIME_KEYS
from llm_ckpt.formats.hf import CONFIG, read_json
from llm_ckpt.layout import Shape, Shard, cut
from llm_ckpt.source import WeightSource

DEFAULT_STD = 0.02
_TOKENS = ("bos", "eos", "pad")


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialOpener:
    """Random weights of an architecture (the text of its arch.json), from a seed."""

    arch_text: str
    seed: int
    dtype: torch.dtype
    std: float
    tokenizer: Path | None

    def __call__(self) -> WeightSource:
        """Open it."""
        arch = parse_arch_text(self.arch_text, where="arch.json")
        root = self.tokenizer or Path()
        return WeightSource(
            table=family_named(arch.family, where="arch.json").table(arch),
            tensors=InitialTensors(self.seed, self.dtype, self.std),
            located=Located(root, "hf", root, None),
            companions=companions(self.tokenizer) if self.tokenizer else [],
        )

    def fingerprint(self) -> str:
        """Everything the bytes depend on."""
        return repr((self.seed, str(self.dtype), self.std, torch.__version__))


@dataclass(frozen=True, slots=True)
class InitialTensors:
    """Transformers' initial distribution: normal(0, std) matrices, norms 1, biases 0.

    Each tensor has its own generator, so its values do not depend on the order of reading.
    """

    seed: int
    stored_dtype: torch.dtype
    std: float

    def dtype(self, name: str) -> torch.dtype:
        """One dtype for all."""
        del name
        return self.stored_dtype

    def read(self, param: Param, shard: Shard, padded: Shape) -> Tensor:
        """Make the whole tensor, then cut it."""
        whole = self._whole(param)
        if padded != param.shape:
            whole = torch.cat([whole, whole.new_zeros(padded[0] - param.shape[0], *padded[1:])])
        return cut(whole, param.cut, shard, where=param.name)

    def close(self) -> None:
        """Nothing is open."""

    def _whole(self, param: Param) -> Tensor:
        if param.name.endswith(".bias"):
            return torch.zeros(param.shape, dtype=self.stored_dtype)
        if len(param.shape) == 1 and param.cut.axis is None:
            return torch.ones(param.shape, dtype=self.stored_dtype)
        digest = hashlib.sha256(f"{self.seed}:{param.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        values = torch.empty(param.shape).normal_(0.0, self.std, generator=generator)
        return values.to(self.stored_dtype)


@dataclass(frozen=True, slots=True)
class InitialModel:
    """What `init` writes: the source of weights, and the configuration files beside them."""

    opener: InitialOpener
    files: Mapping[str, bytes]


def prepare(path: Path, *, tokenizer: Path | None, seed: int, dtype: torch.dtype) -> InitialModel:
    """Read an arch.json or config.json (and a tokenizer folder) and check that they agree."""
    arch, given = arch_from_file(path), read_json(path)
    family = family_named(arch.family, where=str(path))
    config = family.write_config(arch, dtype=str(dtype).removeprefix("torch."))
    keep = RUNTIME_KEYS.keys() - {"dtype", "torch_dtype", "architectures", "model_type"}
    config |= {key: value for key, value in given.items() if key in keep}
    if tokenizer is not None:
        size, ids = _token_ids(tokenizer)
        if size > arch.vocab_size:
            raise CheckpointError(
                f"{path}: vocab_size({arch.vocab_size}) < {size}, the number of token ids of "
                f"{tokenizer}"
            )
        config |= {key: value for key, value in ids.items() if config.get(key) is None}
    opener = InitialOpener(
        arch_text=arch.dumps(),
        seed=seed,
        dtype=dtype,
        std=float(config.get("initializer_range", DEFAULT_STD)),
        tokenizer=tokenizer,
    )
    files = {CONFIG: config}
    if named := {f"{k}_token_id": config.get(f"{k}_token_id") for k in _TOKENS}:
        files["generation_config.json"] = {k: v for k, v in named.items() if v is not None}
    as_bytes = {
        n: (json.dumps(d, indent=2, sort_keys=True) + "\n").encode() for n, d in files.items()
    }
    return InitialModel(opener, as_bytes)


def _token_ids(folder: Path) -> tuple[int, dict[str, int]]:
    """Number of token ids of a tokenizer folder, and the ids of its special tokens."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{path}: file is missing")
    document: dict[str, Any] = read_json(path)
    vocab = document.get("model", {}).get("vocab", {})
    ids = dict(vocab) if isinstance(vocab, dict) else {v[0]: i for i, v in enumerate(vocab)}
    ids |= {token["content"]: token["id"] for token in document.get("added_tokens", [])}
    names = folder / "tokenizer_config.json"
    config = read_json(names) if names.is_file() else {}
    special: dict[str, int] = {}
    for kind in _TOKENS:
        token = config.get(f"{kind}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if text in ids:
            special[f"{kind}_token_id"] = ids[text]
    return max(ids.values(), default=-1) + 1, special
