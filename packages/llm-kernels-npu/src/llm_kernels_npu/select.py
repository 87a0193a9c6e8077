"""Which backend serves an operator: chosen once, by name or by a device's documented order."""

import importlib
import importlib.util
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor

from llm_kernels_npu.checked import checked
from llm_kernels_npu.errors import BackendMissingError, CallRefusedError, UnknownNameError
from llm_kernels_npu.registry import AUTO_ORDER, OPERATORS, Backend, operator

AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The backend chosen for an operator, and why those before it in the order were not."""

    operator: str
    backend: str
    passed_over: tuple[str, ...] = ()

    def __str__(self) -> str:
        why = f" ({'; '.join(self.passed_over)})" if self.passed_over else ""
        return f"{self.operator} {self.backend}{why}"


def choose(
    name: str, *, device: str, backend: str = AUTO, features: Collection[str] = ()
) -> Choice:
    """The backend for operator `name` on a device type.

    A backend asked for by name is that one or an error. `auto` is the first of the operator's
    order that is here and lacks none of the features the caller will use.
    """
    wanted = operator(name)
    if device not in AUTO_ORDER:
        raise UnknownNameError("device", device, AUTO_ORDER)
    for feature in features:
        if feature not in wanted.features:
            raise UnknownNameError(f"feature of {name}", feature, wanted.features)
    if backend != AUTO:
        reason = _why_not(wanted.backend(backend), device=device, features=features)
        if reason is not None:
            raise BackendMissingError(f"{name}: backend {backend} {reason}")
        return Choice(operator=name, backend=backend)
    passed_over: list[str] = []
    for candidate in map(wanted.backend, wanted.auto_order(device)):
        reason = _why_not(candidate, device=device, features=features)
        if reason is None:
            return Choice(operator=name, backend=candidate.name, passed_over=tuple(passed_over))
        passed_over.append(f"{candidate.name} {reason}")
    raise AssertionError(f"{name}: the reference serves everything")


def bind(choice: Choice) -> Callable[..., Any]:
    """The chosen backend as one callable that checks its limits and then runs."""
    run, limit = load(choice.operator, choice.backend)

    def refuse(reason: str, args: tuple[object, ...], kwargs: dict[str, object]) -> NoReturn:
        takers = _takers(choice, args, kwargs)
        raise CallRefusedError(choice.operator, choice.backend, reason, takers)

    return checked(run, limit, refuse)


def load(name: str, backend: str) -> tuple[Callable[..., Any], Callable[..., str | None]]:
    """A backend's function and its limits, its package imported first."""
    package = operator(name).backend(backend).package
    if package is not None:
        importlib.import_module(package)
    module = importlib.import_module(f"llm_kernels_npu.ops.{name}.{backend}")
    limits = importlib.import_module(f"llm_kernels_npu.ops.{name}.limits")
    return getattr(module, name), limits.LIMITS[backend]


def availability(name: str, *, device: str) -> Iterator[tuple[Backend, str | None]]:
    """Each backend of an operator with None for usable or the reason why not."""
    for backend in OPERATORS[name].backends:
        yield backend, _why_not(backend, device=device, features=())


def _why_not(backend: Backend, *, device: str, features: Collection[str]) -> str | None:
    if device not in backend.devices:
        return f"serves {', '.join(sorted(backend.devices))}, not {device}"
    # The package first: to look for its part imports it.
    for module in (backend.package, backend.plugins.get(device)):
        if module is not None and importlib.util.find_spec(module) is None:
            return f"needs {module}: {backend.install}"
    lacking = sorted(backend.lacks.intersection(features))
    if lacking:
        return f"has no {', '.join(lacking)}"
    return None


def _takers(choice: Choice, args: tuple[object, ...], kwargs: dict[str, object]) -> list[str]:
    device = next((value.device.type for value in args if isinstance(value, Tensor)), "cpu")
    takers: list[str] = []
    for backend in OPERATORS[choice.operator].backends:
        if backend.name == choice.backend:
            continue
        if _why_not(backend, device=device, features=()) is not None:
            continue
        if load(choice.operator, backend.name)[1](*args, **kwargs) is None:
            takers.append(backend.name)
    return takers
