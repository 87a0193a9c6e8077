"""AdamW whose state is kept where and as it is told; the arithmetic is torch's own, in fp32.

It takes the place of torch's AdamW inside megatron-core's distributed optimizer, in the mode in
which megatron-core leaves masters to the inner optimizer: parameters are this rank's slices of the
weights themselves, and gradients come as `decoupled_grad`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
from torch.optim.adamw import adamw

from llm_train.train.memory.halves import Halves, join, split

# 16 bytes each while they are worked on: moments, master, gradient.
PART_ELEMENTS = 1 << 24


class Master(Enum):
    """What is kept of the fp32 number behind a bf16 weight."""

    WHOLE = auto()
    LOW_HALF = auto()
    NOTHING = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class StateLayout:
    """How state is kept between steps; `host` None: beside the weights."""

    moments: torch.dtype
    master: Master
    host: torch.device | None
    part_elements: int = PART_ELEMENTS


@dataclass(slots=True, kw_only=True)
class _Slice:
    """Elements of one parameter: what is kept of them, and what is worked on."""

    weight: torch.Tensor
    gradient: torch.Tensor
    kept: Mapping[str, torch.Tensor]
    step: torch.Tensor
    group: Mapping[str, Any]
    at_work: dict[str, torch.Tensor]


class KeptAdam(torch.optim.Optimizer):
    """AdamW over the param groups of a distributed optimizer."""

    def __init__(self, param_groups: list[dict[str, Any]], layout: StateLayout) -> None:
        super().__init__([torch.zeros(0)], {})
        # As megatron-core does: torch takes no slices of weights as parameters.
        self.param_groups = param_groups
        self.layout = layout
        self._copies = None if layout.host is None else torch.cuda.Stream()

    def make_state(self) -> None:
        """Fresh moments, and masters from the weights, where there are none."""
        for parameter in self._parameters():
            if not self.state[parameter]:
                self.state[parameter] = self._fresh(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  # no closures
        """Update part by part: while one is worked on, the next is on its way."""
        assert closure is None
        self.make_state()
        parts = list(self._parts())
        for part in parts[:1]:
            self._fetch(part)
        for index, part in enumerate(parts):
            self._wait_for_copies()
            for following in parts[index + 1 : index + 2]:
                self._fetch(following)
            _update(part)
            self._put_back(part)
        for parameter in self._parameters():
            self.state[parameter]["step"] += 1

    def values(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """fp32 `param`, `exp_avg` and `exp_avg_sq` of a parameter, as checkpoints hold them."""
        if self._copies is not None:
            torch.cuda.synchronize()
        kept = self.state[parameter]
        at_work = {key: value for key, value in kept.items() if key != "step"}
        device = at_work["exp_avg"].device
        found = _worked_on(at_work, parameter.detach().to(device))
        return {"param": found["master"], **{k: found[k] for k in ("exp_avg", "exp_avg_sq")}}

    @torch.no_grad()
    def set_values(self, parameter: torch.Tensor, values: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `values`."""
        kept = self.state[parameter]
        device = kept["exp_avg"].device
        new = {key: values[key].to(device, torch.float32) for key in ("exp_avg", "exp_avg_sq")}
        new["master"] = values["param"].to(device, torch.float32)
        parameter.copy_(_keep(new, kept))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Hyperparameters only: torch's own would cast the state to the type of the weights.

        megatron-core writes steps into the state itself, and the rest through `set_values`.
        """
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})

    def _parameters(self) -> Iterator[torch.Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    def _fresh(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        state = {
            "step": torch.tensor(0.0),
            "exp_avg": self._room(parameter, self.layout.moments),
            "exp_avg_sq": self._room(parameter, self.layout.moments),
        }
        if parameter.dtype is torch.float32:
            return state  # its own master
        if self.layout.master is Master.WHOLE:
            state["master"] = self._room(parameter, torch.float32)
            state["master"].copy_(parameter.detach())
        elif self.layout.master is Master.LOW_HALF:
            state["low"] = self._room(parameter, torch.int16)
        return state

    def _room(self, parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        host, size = self.layout.host, parameter.shape
        if host is None:
            return torch.zeros(size, dtype=dtype, device=parameter.device)
        is_pinned = parameter.device.type != "cpu"
        return torch.zeros(size, dtype=dtype, device=host, pin_memory=is_pinned)

    def _parts(self) -> Iterator[list[_Slice]]:
        """Slices that together have at most `part_elements`."""
        part, room = list[_Slice](), self.layout.part_elements
        for one in self._slices():
            if part and one.weight.numel() > room:
                yield part
                part, room = [], self.layout.part_elements
            part.append(one)
            room -= one.weight.numel()
        if part:
            yield part

    def _slices(self) -> Iterator[_Slice]:
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = getattr(parameter, "decoupled_grad", None)
                if gradient is None or parameter.numel() == 0:
                    continue
                state = self.state[parameter]
                for start in range(0, parameter.numel(), self.layout.part_elements):
                    here = slice(start, start + self.layout.part_elements)
                    yield _Slice(
                        weight=parameter.detach().view(-1)[here],
                        gradient=gradient.detach().view(-1)[here],
                        kept={k: v.view(-1)[here] for k, v in state.items() if k != "step"},
                        step=state["step"],
                        group=group,
                        at_work={},
                    )

    def _fetch(self, part: Sequence[_Slice]) -> None:
        """Bring what is kept to the weights' device."""
        with nullcontext() if self._copies is None else torch.cuda.stream(self._copies):
            for one in part:
                device = one.weight.device
                one.at_work = {k: v.to(device, non_blocking=True) for k, v in one.kept.items()}

    def _wait_for_copies(self) -> None:
        if self._copies is not None:
            torch.cuda.current_stream().wait_stream(self._copies)

    def _put_back(self, part: Sequence[_Slice]) -> None:
        """Keep what was worked on, and update the weights."""
        if self._copies is None:
            for one in part:
                one.weight.copy_(_keep(one.at_work, one.kept))
                one.at_work.clear()
            return
        for one in part:
            # Made small here, so that only what is kept travels.
            small = {
                key: torch.empty_like(v, device=one.weight.device) for key, v in one.kept.items()
            }
            one.weight.copy_(_keep(one.at_work, small))
            one.at_work = small
        self._copies.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._copies):
            for one in part:
                for key, value in one.at_work.items():
                    one.kept[key].copy_(value, non_blocking=True)
                    value.record_stream(self._copies)
                one.at_work.clear()


def _update(part: Sequence[_Slice]) -> None:
    """One call a param group, as torch's AdamW makes it."""
    groups = {id(one.group): one.group for one in part}
    for name, group in groups.items():
        slices = [one for one in part if id(one.group) == name]
        for one in slices:
            one.at_work = _worked_on(one.at_work, one.weight)
        beta1, beta2 = group["betas"]
        adamw(
            [one.at_work["master"] for one in slices],
            [one.gradient.float() for one in slices],
            [one.at_work["exp_avg"] for one in slices],
            [one.at_work["exp_avg_sq"] for one in slices],
            [],
            # A copy: the parameter's own is counted up once all of its slices are done.
            [one.step.clone() for one in slices],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            fused=all(is_fused(one.weight) for one in slices),
        )


def is_fused(parameter: torch.Tensor) -> bool:
    """Whether torch's AdamW updates it in one pass over memory.

    On CUDA its kernel wants step counters on the device, where megatron-core keeps none.
    """
    return parameter.device.type == "cpu"


def _worked_on(kept: Mapping[str, torch.Tensor], weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """`master`, `exp_avg` and `exp_avg_sq` in fp32, those that are kept so as they are.

    The second moment is never negative: its sign is the flag of `halves`.
    """
    found = {key: kept[key].float() for key in ("exp_avg", "exp_avg_sq")}
    if "low" in kept:
        is_tie = torch.signbit(found["exp_avg_sq"])
        found["exp_avg_sq"] = found["exp_avg_sq"].abs()
        found["master"] = join(Halves(high=weight, low=kept["low"], is_tie=is_tie))
    else:
        found["master"] = kept["master"] if "master" in kept else weight.float()
    return found


def _keep(new: Mapping[str, torch.Tensor], kept: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Write `new` into what is kept of it; the new weight, in fp32 or bf16."""
    weight, second = new["master"], new["exp_avg_sq"]
    if "low" in kept:
        weight, low, is_tie = split(weight)
        kept["low"].copy_(low)
        second = torch.where(is_tie, -second, second)
    elif "master" in kept:
        kept["master"].copy_(weight)
    kept["exp_avg"].copy_(new["exp_avg"])
    kept["exp_avg_sq"].copy_(second)
    return weight
