"""Which layers attend within a sliding window: codecs of the window column of `layers`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llm_ckpt.arch import Arch
from llm_ckpt.errors import ArchError
from llm_ckpt.families.fields import Facts, Json

_KINDS = ("full_attention", "sliding_attention")
Pattern = Callable[[Mapping[str, Json], int], list[str]]


@dataclass(frozen=True, slots=True)
class Window:
    """One window for every layer; null is none."""

    key: str = "sliding_window"
    default: int | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The one key."""
        return (self.key,)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """The window of each layer."""
        del where
        return {"layers.window": config.get(self.key, self.default)}

    def write(self, arch: Arch) -> dict[str, Json]:
        """The first layer's; writing is checked by reading back."""
        return {self.key: arch.layers[0].window}


@dataclass(frozen=True, slots=True)
class LayerTypes:
    """`layer_types` of full and sliding attention, and `sliding_window` of the latter.

    `pattern` gives the types when the key is absent. With `turns_in_windows` the layers without a
    window have no position signal (when any has one).
    """

    pattern: Pattern
    default: int | None = 4096
    turns_in_windows: bool = False
    keys: tuple[str, ...] = ("layer_types", "sliding_window")

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """Window of each layer, and whether it rotates."""
        types = layer_types(config, self.pattern, where=where)
        windows = windows_of(types, config.get("sliding_window", self.default), where=where)
        if not self.turns_in_windows or windows == [None] * len(windows):
            return {"layers.window": windows}
        return {"layers.window": windows, "layers.rope": [w is not None for w in windows]}

    def write(self, arch: Arch) -> dict[str, Json]:
        """Types and window."""
        return written_types(arch)


@dataclass(frozen=True, slots=True)
class SwitchedWindows:
    """Qwen's keys: `use_sliding_window` switches, layers from `max_window_layers` on slide."""

    keys: tuple[str, ...] = (
        "use_sliding_window",
        "sliding_window",
        "max_window_layers",
        "layer_types",
    )
    default: int = 4096
    first: int = 28

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """Window of each layer."""
        is_used = bool(config.get("use_sliding_window"))
        window = config.get("sliding_window", self.default) if is_used else None
        types = layer_types(config, self._types if window else _all_full, where=where)
        return {"layers.window": windows_of(types, window, where=where)}

    def write(self, arch: Arch) -> dict[str, Json]:
        """All four keys."""
        keys = written_types(arch)
        types: list[str] = keys["layer_types"]
        is_used = "sliding_attention" in types
        first = types.index("sliding_attention") if is_used else len(types)
        return {**keys, "use_sliding_window": is_used, "max_window_layers": first}

    def _types(self, config: Mapping[str, Json], count: int) -> list[str]:
        first = config.get("max_window_layers", self.first)
        return [_KINDS[layer >= first] for layer in range(count)]


@dataclass(frozen=True, slots=True)
class NoRopeLayers:
    """SmolLM3's keys: `no_rope_layers` has 1 for layers that rotate; the others may slide."""

    keys: tuple[str, ...] = (
        "no_rope_layers",
        "no_rope_layer_interval",
        "use_sliding_window",
        "sliding_window",
        "layer_types",
    )

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """Rotation and window of each layer."""
        count = _count(config, where=where)
        interval = config.get("no_rope_layer_interval", 4)
        turns = config.get("no_rope_layers")
        if turns is None:
            turns = [(layer + 1) % interval != 0 for layer in range(count)]
        if len(turns) != count:
            raise ArchError(
                f"{where}: no_rope_layers has {len(turns)} entries, num_hidden_layers is {count}"
            )
        window = config.get("sliding_window") if config.get("use_sliding_window") else None

        def pattern(config: Mapping[str, Json], count: int) -> list[str]:
            del config, count
            return [_KINDS[window is not None and not turn] for turn in turns]

        types = layer_types(config, pattern, where=where)
        return {
            "layers.rope": [bool(turn) for turn in turns],
            "layers.window": windows_of(types, window, where=where),
        }

    def write(self, arch: Arch) -> dict[str, Json]:
        """All keys but the interval, which the list makes needless."""
        keys = written_types(arch)
        return {
            **keys,
            "use_sliding_window": keys["sliding_window"] is not None,
            "no_rope_layers": [int(run.rope) for run in arch.each_layer()],
        }


def every_nth_full(n: int) -> Pattern:
    """Layers n, 2n, … (counted from one) attend to everything."""

    def pattern(config: Mapping[str, Json], count: int) -> list[str]:
        del config
        return [_KINDS[(layer + 1) % n != 0] for layer in range(count)]

    return pattern


# Sliding and full in turn.
alternating = every_nth_full(2)


def nth_full_by_key(config: Mapping[str, Json], count: int) -> list[str]:
    """As `every_nth_full`, n under `sliding_window_pattern` (4 when absent); 0 for no window."""
    n = config.get("sliding_window_pattern", 4)
    has_window = config.get("sliding_window", 4096) is not None
    return every_nth_full(n)(config, count) if has_window else _all_full(config, count)


def all_sliding(config: Mapping[str, Json], count: int) -> list[str]:
    """Every layer, unless there is no window."""
    has_window = config.get("sliding_window", 4096) is not None
    return [_KINDS[has_window]] * count


def layer_types(config: Mapping[str, Json], pattern: Pattern, *, where: str) -> list[str]:
    """`layer_types`, checked, or the pattern where it is absent or null."""
    count = _count(config, where=where)
    types: list[str] | None = config.get("layer_types")
    if types is None:
        return pattern(config, count)
    if len(types) != count:
        raise ArchError(
            f"{where}: layer_types has {len(types)} entries, num_hidden_layers is {count}"
        )
    if other := [(index, kind) for index, kind in enumerate(types) if kind not in _KINDS]:
        index, kind = other[0]
        raise ArchError(
            f"{where}: layer_types[{index}]={kind!r} cannot be converted, want one of "
            f"{', '.join(_KINDS)}"
        )
    return types


def windows_of(types: list[str], window: int | None, *, where: str) -> list[int | None]:
    """The window of each layer; a sliding layer needs one."""
    if window is None and "sliding_attention" in types:
        raise ArchError(
            f"{where}: layer_types[{types.index('sliding_attention')}]='sliding_attention', but "
            "sliding_window is null or switched off; want a number"
        )
    return [window if kind == "sliding_attention" else None for kind in types]


def written_types(arch: Arch) -> dict[str, Json]:
    """`layer_types` and the first window; writing is checked by reading back."""
    windows = [run.window for run in arch.each_layer()]
    return {
        "layer_types": [_KINDS[window is not None] for window in windows],
        "sliding_window": next((window for window in windows if window is not None), None),
    }


def _all_full(config: Mapping[str, Json], count: int) -> list[str]:
    del config
    return [_KINDS[0]] * count


def _count(config: Mapping[str, Json], *, where: str) -> int:
    count = config.get("num_hidden_layers")
    if not isinstance(count, int):
        raise ArchError(f"{where}: num_hidden_layers={count!r}, want an integer")
    return count
