"""The functions of the C library, over tensors.

Each takes float32 tensors of the CPU whose last axis is dense; what its C struct says of shapes is
what it requires, and is checked where a wrong one would read or write elsewhere.
"""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_infer.compiled import build
from llm_infer.compiled.build import CannotCompileError

# T tokens, G groups, R queries of a group, D channels, S slots of the cache
MOST_BLOCK_TOKENS = 128
"""As in attention.c."""
# As in linear.c.
_KINDS = {torch.float32: 0, torch.int8: 1, torch.bfloat16: 2, torch.float16: 3}
_RUNTIMES = ("libgomp", "libiomp5", "libomp")

WEIGHTS = frozenset(_KINDS)
"""Number types that weights may be kept in."""


def _struct(name: str, **fields: Any) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


_Attention = _struct(
    "_Attention",
    out=c_void_p, q=c_void_p, keys=c_void_p, values=c_void_p, sinks=c_void_p, slopes=c_void_p,
    segments=c_void_p, blocks=c_void_p,
    q_token=c_int64, q_group=c_int64, q_query=c_int64,
    key_group=c_int64, key_slot=c_int64, value_group=c_int64, value_slot=c_int64,
    num_segments=c_int32, groups=c_int32, queries=c_int32, key_dim=c_int32, value_dim=c_int32,
    block_tokens=c_int32, window=c_int32, threads=c_int32,
    scale=c_float, softcap=c_float,
)  # fmt: skip
_Linear = _struct(
    "_Linear",
    y=c_void_p, x=c_void_p, panels=c_void_p, scales=c_void_p, bias=c_void_p, x_row=c_int64,
    rows=c_int32, inputs=c_int32, outputs=c_int32, kind=c_int32, is_gated=c_int32,
    threads=c_int32,
)  # fmt: skip
_Packing = _struct(
    "_Packing",
    panels=c_void_p, weight=c_void_p,
    inputs=c_int32, outputs=c_int32, kind=c_int32, is_gated=c_int32, threads=c_int32,
)  # fmt: skip
_Norm = _struct(
    "_Norm",
    y=c_void_p, x=c_void_p, gain=c_void_p, x_row=c_int64, rows=c_int64,
    size=c_int32, gains=c_int32, threads=c_int32, eps=c_float,
)  # fmt: skip
_Heads = _struct(
    "_Heads",
    rows=c_void_p, cos=c_void_p, sin=c_void_p, gain=c_void_p, slots=c_void_p,
    keys=c_void_p, values=c_void_p,
    key_group=c_int64, key_slot=c_int64, value_group=c_int64, value_slot=c_int64,
    tokens=c_int32, groups=c_int32, queries=c_int32, heads=c_int32, dim=c_int32,
    width=c_int32, is_interleaved=c_int32, norm_is_last=c_int32, threads=c_int32, eps=c_float,
)  # fmt: skip


class Library:
    """The C functions, each shared between as many threads as torch has."""

    def __init__(self, library: ctypes.CDLL) -> None:
        runtime = _thread_runtime()
        if runtime is not None:
            library.llm_set_parallel(ctypes.c_void_p(runtime))
        self.lanes, self.panel = int(library.llm_lanes()), int(library.llm_panel())
        """float32 numbers of a vector, and outputs of a panel of weights."""
        self._attention = _taking(library.llm_attention, _Attention)
        self._linear = _taking(library.llm_linear, _Linear)
        self._pack = _taking(library.llm_pack, _Packing)
        self._rms_norm = _taking(library.llm_rms_norm, _Norm)
        self._place_heads = _taking(library.llm_place_heads, _Heads)

    def can_attend(self, keys: Tensor, values: Tensor, *, block_tokens: int) -> bool:
        """Whether `attention` takes a cache of keys and values [G, S, D] in blocks of that size."""
        return (
            keys.device.type == "cpu"
            and keys.dtype == values.dtype == torch.float32
            and keys.shape[-1] % self.lanes == 0
            and values.shape[-1] % self.lanes == 0
            and block_tokens % self.lanes == 0
            and block_tokens <= MOST_BLOCK_TOKENS
        )

    def attention(
        self,
        q_TGRD: Tensor,
        keys_GSD: Tensor,
        values_GSD: Tensor,
        segments: Tensor,
        blocks: Tensor,
        *,
        block_tokens: int,
        scale: float,
        softcap: float | None,
        window: int | None,
        sinks: Tensor | None,
        slopes: Tensor | None,
    ) -> Tensor:
        """Mixed values [T, G, R, Dv] of the tokens that segments have; others are not written.

        `segments` int32 [N, 4]: first token and number of tokens, which lie in one block, first
        position, and where the text's blocks begin in `blocks` int32. `sinks` and `slopes` [G * R].
        """
        tokens, groups, queries, dim = q_TGRD.shape
        if q_TGRD.stride(-1) != 1:
            q_TGRD = q_TGRD.contiguous()
        out = q_TGRD.new_empty(tokens, groups, queries, values_GSD.shape[-1])
        assert segments.dtype == blocks.dtype == torch.int32
        assert dim == keys_GSD.shape[-1]
        self._attention(
            out.data_ptr(),
            q_TGRD.data_ptr(),
            keys_GSD.data_ptr(),
            values_GSD.data_ptr(),
            _address(sinks, groups * queries),
            _address(slopes, groups * queries),
            segments.data_ptr(),
            blocks.data_ptr(),
            *q_TGRD.stride()[:3],
            *keys_GSD.stride()[:2],
            *values_GSD.stride()[:2],
            len(segments),
            groups,
            queries,
            dim,
            values_GSD.shape[-1],
            block_tokens,
            window or 0,
            torch.get_num_threads(),
            scale,
            softcap or 0.0,
        )
        return out

    def packed(self, weight: Tensor, *, is_gated: bool = False) -> Tensor:
        """A weight [N, K] of a type in `WEIGHTS` in panels [P, K, panel].

        Gated: one of gates [N / 2, K], then ups.
        """
        outputs, inputs = weight.shape
        if is_gated:
            outputs //= 2
        weight = weight.contiguous()
        width = self.panel // 2 if is_gated else self.panel
        panels = weight.new_empty(-(-outputs // width), inputs, self.panel)
        self._pack(
            panels.data_ptr(),
            weight.data_ptr(),
            inputs,
            outputs,
            _KINDS[weight.dtype],
            is_gated,
            torch.get_num_threads(),
        )
        return panels

    def linear(
        self,
        x: Tensor,
        panels: Tensor,
        scales: Tensor | None,
        bias: Tensor | None,
        *,
        outputs: int,
        is_gated: bool,
    ) -> Tensor:
        """The product [T, outputs] of x [T, K] with packed weights.

        Scales, by which each output's sum is multiplied, and biases [N, 1] are packed likewise.
        """
        rows, inputs = x.shape
        if x.stride(-1) != 1 or x.dtype != torch.float32:
            x = x.float().contiguous()
        assert inputs == panels.shape[1], (inputs, panels.shape)
        y = x.new_empty(rows, outputs)
        self._linear(
            y.data_ptr(),
            x.data_ptr(),
            panels.data_ptr(),
            _address(scales, len(panels) * self.panel),
            _address(bias, len(panels) * self.panel),
            x.stride(0),
            rows,
            inputs,
            outputs,
            _KINDS[panels.dtype],
            is_gated,
            torch.get_num_threads(),
        )
        return y

    def rms_norm(self, x: Tensor, gain: Tensor, *, eps: float) -> Tensor:
        """`x / sqrt(mean(x²) + eps) * gain` of x [..., N, size] and gain [size] or [N, size]."""
        size = x.shape[-1]
        flat = x.reshape(-1, size)
        if flat.stride(-1) != 1:
            flat = flat.contiguous()
        gain = gain.contiguous()
        assert gain.dtype == flat.dtype == torch.float32
        assert gain.shape[-1] == size
        y = flat.new_empty(flat.shape)
        self._rms_norm(
            y.data_ptr(),
            flat.data_ptr(),
            gain.data_ptr(),
            flat.stride(0),
            len(flat),
            size,
            gain.numel() // size,
            torch.get_num_threads(),
            eps,
        )
        return y.view(x.shape)

    def place_heads(
        self,
        rows_TGND: Tensor,
        cos_sin: tuple[Tensor, Tensor] | None,
        slots: Tensor,
        keys_GSD: Tensor,
        values_GSD: Tensor,
        *,
        queries: int,
        gain: Tensor | None,
        eps: float,
        norm_is_last: bool,
        interleaved: bool,
    ) -> None:
        """Norm and rotate queries and keys where they are; keys and values go into the cache.

        Of a group's rows the first are queries, the last two its key and value. `gain` [R + 1, D]:
        the queries' norms, then the key's. Tables [T, 1, width].
        """
        tokens, groups, heads, dim = rows_TGND.shape
        assert rows_TGND.is_contiguous()
        assert rows_TGND.dtype == keys_GSD.dtype == values_GSD.dtype == torch.float32
        cos, sin = (None, None) if cos_sin is None else (one.contiguous() for one in cos_sin)
        width = 0 if cos is None else cos.shape[-1]
        assert slots.dtype == torch.int64
        assert len(slots) == tokens
        self._place_heads(
            rows_TGND.data_ptr(),
            _address(cos, tokens * width),
            _address(sin, tokens * width),
            _address(gain, (queries + 1) * dim),
            slots.contiguous().data_ptr(),
            keys_GSD.data_ptr(),
            values_GSD.data_ptr(),
            *keys_GSD.stride()[:2],
            *values_GSD.stride()[:2],
            tokens,
            groups,
            queries,
            heads,
            dim,
            width,
            interleaved,
            norm_is_last,
            torch.get_num_threads(),
            eps,
        )


def _taking(function: Any, struct: type[ctypes.Structure]) -> Any:
    """A C function of one struct, called with the struct's fields."""
    function.restype, function.argtypes = None, (ctypes.c_void_p,)
    address, made = ctypes.addressof, struct

    def call(*fields: float) -> None:
        one = made(*fields)
        function(address(one))

    return call


def _address(tensor: Tensor | None, numbers: int) -> int:
    if tensor is None:
        return 0
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert tensor.numel() == numbers, (tensor.shape, numbers)
    return tensor.data_ptr()


@cache
def library() -> "Library | CannotCompileError":
    """The library of this process, or why it has none."""
    try:
        return Library(build.load())
    except CannotCompileError as error:
        return error


def _thread_runtime() -> int | None:
    """The address of `GOMP_parallel` in the OpenMP runtime that torch has loaded, if it has one."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return None
    rows = (line.split(maxsplit=5) for line in maps.read_text().splitlines())
    loaded = {row[5] for row in rows if len(row) > 5}
    # Torch's own first, where the process has others, too.
    near_torch = str(Path(torch.__file__).parent.parent)
    ours = sorted(loaded, key=lambda path: (not path.startswith(near_torch), path))
    for path in ours:
        if Path(path).name.startswith(_RUNTIMES):
            try:
                found = ctypes.CDLL(path).GOMP_parallel
            except (OSError, AttributeError):
                continue
            return ctypes.cast(found, ctypes.c_void_p).value
    return None
