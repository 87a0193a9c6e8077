"""Optimizer state of a Megatron checkpoint: tensors of the parameters' shapes, and plain values.

A state tensor is read like a parameter, under the name `optimizer.state.KIND.PARAMETER` (KIND is
`exp_avg`, `exp_avg_sq`, `param` …), so plans, writers and `verify` take it for one more tensor.
"""

import re
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from llm_ckpt.arch import Arch
from llm_ckpt.errors import FormatError, first_few
from llm_ckpt.formats.dist_metadata import DistMetadata, StoredKey, read_metadata
from llm_ckpt.formats.slab import Files
from llm_ckpt.formats.tiled import Tiled
from llm_ckpt.formats.torch_dist import COMMON, read_keys
from llm_ckpt.formats.torch_zip import TorchZip, read_torch_zip
from llm_ckpt.formats.unpickle import Lazy
from llm_ckpt.layout import whole
from llm_ckpt.params import expected_params

FULLY_RESHARDABLE = "fully_reshardable"
SHARDING = "param_state_sharding_type"
CONTENT_SHARDING = "distrib_optim_sharding_type"
DROP_HINT = "or leave the optimizer out with --no-optimizer"
# What every writer makes anew for its own layout.
REMADE = frozenset({"args", "iteration", "checkpoint_version", "content_metadata"})
_PREFIX = "optimizer.state."
_NAME = re.compile(r"optimizer\.state\.([a-z0-9_]+)\.(.+)")
# megatron-core numbers optimizers that are chained, unless `chained_optim_avoid_prefix` is set.
_CHAINED = re.compile(r"chained_\d+\.(?=optimizer\.)")
_PLAIN = (str, int, float, bool, type(None), torch.dtype)

Span = tuple[Path, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerState:
    """All that training resumes from beside the weights.

    `params` have tensors of each of `kinds`. `common`: plain values. `objects`: what torch_dist
    keeps of each rank's random state, by key: file, offset, length.
    """

    params: tuple[str, ...]
    kinds: Mapping[str, Tiled]
    common: Mapping[str, Any]
    objects: Mapping[str, Span] = field(default_factory=dict[str, Span])

    def names(self) -> list[str]:
        """Names of the state tensors, kind by kind in model order."""
        return [state_name(kind, name) for kind in self.kinds for name in self.params]

    @property
    def has_rng(self) -> bool:
        """Whether random states are among it."""
        return any(key.startswith("rng_state") for key in (*self.objects, *self.common))


def state_name(kind: str, name: str) -> str:
    """The name of a parameter's state of a kind."""
    return f"{_PREFIX}{kind}.{name}"


def split_state(name: str) -> tuple[str, str]:
    """Kind and parameter of a state; the kind of a parameter itself is empty."""
    match = _NAME.fullmatch(name)
    return (match[1], match[2]) if match else ("", name)


def is_trained(name: str) -> bool:
    """Whether a parameter has optimizer state; megatron-core keeps the routers' bias a buffer."""
    return not name.endswith(".router.expert_bias")


def has_v2_state(iteration: Path) -> bool:
    """Whether a torch_dist checkpoint holds optimizer state, of whatever form."""
    metadata = read_metadata(iteration)
    return any(_unchained(key).startswith("optimizer.") for key in _all_keys(metadata))


def read_v2_state(iteration: Path, arch: Arch) -> OptimizerState | None:
    """The optimizer state of a torch_dist checkpoint, or None without one."""
    metadata = read_metadata(iteration)
    keys: dict[str, dict[str, StoredKey]] = {}
    for key, stored in metadata.tensors.items():
        kind, name = split_state(_unchained(key))
        if kind:
            keys.setdefault(kind, {})[name] = stored
    known = (_PREFIX, "optimizer.param_groups")
    others = [
        key
        for key in _all_keys(metadata)
        if _unchained(key).startswith("optimizer.") and not _unchained(key).startswith(known)
    ]
    if not keys and not others:
        return None
    path = iteration / COMMON
    if not path.is_file():
        raise FormatError(f"{path}: file is missing; it holds the optimizer's settings")
    opened = read_torch_zip(path)
    _check_sharding(opened.value, others, where=str(iteration))
    params = [param for param in expected_params(arch) if is_trained(param.name)]
    kinds = {
        kind: read_keys(
            found, params, arch, folder=iteration, where=f"{iteration}: {_PREFIX}{kind}"
        )
        for kind, found in keys.items()
    }
    objects = _objects(metadata, iteration)
    names = tuple(param.name for param in params)
    return OptimizerState(params=names, kinds=kinds, common=_common(opened), objects=objects)


def plain_values(opened: TorchZip, value: object, *, where: str) -> Any:
    """A value without foreign objects, its tensors read; what cannot be rewritten is refused."""
    if isinstance(value, Lazy):
        return _tensor(opened, value)
    if isinstance(value, dict):
        pairs = cast("dict[Any, Any]", value).items()
        return {k: plain_values(opened, v, where=f"{where}[{k!r}]") for k, v in pairs}
    if isinstance(value, list | tuple | set):
        items = cast("Iterable[Any]", value)
        made = (plain_values(opened, v, where=f"{where}[{i}]") for i, v in enumerate(items))
        return type(cast("list[Any]", value))(made)
    if isinstance(value, Namespace):
        return Namespace(**plain_values(opened, vars(value), where=where))
    if isinstance(value, _PLAIN):
        return value
    raise FormatError(
        f"{where} is an object that llm-ckpt does not rewrite; want numbers, text, lists, "
        f"dicts and tensors, {DROP_HINT}"
    )


def _common(opened: TorchZip) -> dict[str, Any]:
    kept = {key: value for key, value in opened.value.items() if key not in REMADE}
    return plain_values(opened, kept, where=str(opened.path))


def _check_sharding(common: Mapping[str, Any], others: list[str], *, where: str) -> None:
    """Refuse state that is cut by the parallel layout of the run that saved it."""
    found = _sharding_types(common.get("optimizer"))
    if others and isinstance(content := common.get("content_metadata"), dict):
        found.add(str(cast("dict[str, Any]", content).get(CONTENT_SHARDING)))
    if not others and found <= {FULLY_RESHARDABLE}:
        return
    kind = ", ".join(sorted(found)) or f"not told (keys {first_few(others, limit=2)})"
    raise FormatError(
        f"{where}: the optimizer's sharding type is {kind}, which only the parallel layout that "
        f"saved it can read; want {FULLY_RESHARDABLE}: save so (Megatron-LM: "
        f"--dist-ckpt-optim-fully-reshardable), {DROP_HINT}"
    )


def _sharding_types(optimizer: object) -> set[str]:
    """The sharding types named in common.pt, one for each of chained optimizers."""
    if not isinstance(optimizer, dict):
        return set()
    entries = cast("dict[Any, Any]", optimizer)
    found = {str(entries[SHARDING])} if SHARDING in entries else set[str]()
    for key, value in entries.items():
        found |= _sharding_types(value) if isinstance(key, int) else set()
    return found


def _objects(metadata: DistMetadata, iteration: Path) -> dict[str, Span]:
    """Objects other than the layers' own; each is unpickled once through the allow-list."""
    found: dict[str, Span] = {}
    for key, (file, offset, length) in metadata.objects.items():
        if "._extra_state" not in key:
            read_torch_zip(iteration / file, start=offset, length=length)
            found[key] = (iteration / file, offset, length)
    return found


def _tensor(opened: TorchZip, lazy: Lazy) -> torch.Tensor:
    slab, files = opened.slab(lazy), Files()
    out = torch.empty(lazy.shape, dtype=lazy.storage.dtype)
    try:
        files.read(slab, whole(lazy.shape), out)
    finally:
        files.close()
    return out


def _unchained(key: str) -> str:
    return _CHAINED.sub("", key, count=1)


def _all_keys(metadata: DistMetadata) -> list[str]:
    return [*metadata.tensors, *metadata.objects]
