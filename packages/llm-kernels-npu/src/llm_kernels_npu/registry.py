"""The table of operators and their backends.

Code follows the table by name: backend `b` of operator `o` is function `o` of module
`ops.o.b`, and its limits are `LIMITS["b"]` of `ops.o.limits`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from llm_kernels_npu.errors import UnknownNameError

AUTO_ORDER: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "npu": ("npu", "triton", "torch", "reference"),
        "cuda": ("triton", "torch", "reference"),
        "cpu": ("torch", "reference"),
    }
)
"""What `auto` tries on each device type, first to last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One way to compute an operator."""

    name: str
    devices: frozenset[str] = frozenset(AUTO_ORDER)
    package: str | None = None
    """Importable package it needs beside torch."""
    plugins: Mapping[str, str] = field(default_factory=dict[str, str])
    """By device, a part of that package that serves it and is not in every build."""
    install: str | None = None
    """The command that brings that package."""
    lacks: frozenset[str] = frozenset()
    """Features of the operator it never takes; `auto` passes it over when one is asked for."""
    lacks_dtypes: frozenset[str] = frozenset()
    """Floating dtypes that others take and it does not, by torch's names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator and its backends; the first is always the reference."""

    name: str
    summary: str
    backends: tuple[Backend, ...]
    features: frozenset[str] = frozenset()
    """What calls may use that not every backend has; a caller may name what it will use."""
    orders: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """By device, what `auto` tries where that is not AUTO_ORDER."""

    def auto_order(self, device: str) -> tuple[str, ...]:
        """What `auto` tries on a device type, first to last."""
        order = self.orders.get(device, AUTO_ORDER[device])
        return tuple(name for name in order if any(name == one.name for one in self.backends))

    def backend(self, name: str) -> Backend:
        """The backend of that name; UnknownNameError lists those there are."""
        for backend in self.backends:
            if backend.name == name:
                return backend
        choices = ["auto", *(backend.name for backend in self.backends)]
        raise UnknownNameError(f"backend of {self.name}", name, choices)


def _npu(*lacks: str, lacks_dtypes: Collection[str] = ()) -> Backend:
    return Backend(
        name="npu",
        devices=frozenset({"npu"}),
        package="torch_npu",
        install="pip install torch-npu==2.9.1",
        lacks=frozenset(lacks),
        lacks_dtypes=frozenset(lacks_dtypes),
    )


def _triton(*lacks: str, devices: tuple[str, ...] = ("cuda", "npu")) -> Backend:
    return Backend(
        name="triton",
        devices=frozenset(devices),
        package="triton",
        # triton and triton-ascend are both the package `triton`.
        plugins=MappingProxyType(
            {"cuda": "triton.backends.nvidia", "npu": "triton.backends.ascend"}
        ),
        install="pip install triton (on Ascend: triton-ascend)",
        lacks=frozenset(lacks),
    )


_REFERENCE = Backend(name="reference")
_TORCH = Backend(name="torch")
_TORCH_FIRST: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"cuda": ("torch", "triton", "reference")}
)
"""Where PyTorch's own is fast on CUDA too, and ours has been timed on no device."""

OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        operator.name: operator
        for operator in (
            Operator(
                name="rms_norm",
                summary="root-mean-square normalisation",
                backends=(_REFERENCE, _TORCH, _triton(), _npu()),
            ),
            Operator(
                name="swiglu",
                summary="silu(gate) * up",
                backends=(_REFERENCE, _TORCH, _triton(), _npu()),
            ),
            Operator(
                name="rope",
                summary="rotary position embedding: half, interleaved, partial",
                backends=(_REFERENCE, _TORCH, _triton(), _npu()),
            ),
            Operator(
                name="cross_entropy",
                summary="loss a row from logits",
                backends=(_REFERENCE, _TORCH, _triton(), _npu()),
            ),
            Operator(
                name="linear_cross_entropy",
                summary="loss a row from hidden states, logits in chunks",
                backends=(_REFERENCE, _TORCH, _triton()),
            ),
            Operator(
                name="add_rms_norm",
                summary="residual sum and its rms_norm",
                backends=(_REFERENCE, _TORCH, _triton(), _npu()),
            ),
            Operator(
                name="layer_norm",
                summary="layer normalisation, with or without bias",
                # On an NPU too PyTorch's own operator is the fused one.
                backends=(_REFERENCE, _TORCH, _triton(devices=("cuda",))),
            ),
            Operator(
                name="geglu",
                summary="gelu(gate) * up, exact or tanh",
                backends=(_REFERENCE, _TORCH, _triton(), _npu()),
            ),
            Operator(
                name="vocab_parallel_cross_entropy",
                summary="loss a row from logits spread over ranks",
                backends=(_REFERENCE, _TORCH),
            ),
            Operator(
                name="matmul_add",
                summary="a weight's gradient added up in float32",
                backends=(_REFERENCE, _TORCH, _npu()),
            ),
            Operator(
                name="adamw",
                summary="one step of AdamW in place",
                backends=(_REFERENCE, _TORCH, _triton(), _npu()),
                # PyTorch's own is fused there too.
                orders=_TORCH_FIRST,
            ),
            Operator(
                name="ring_attention_update",
                summary="attention over two parts' keys from each",
                backends=(_REFERENCE,),
            ),
            Operator(
                name="attention",
                summary="attention: causal, grouped queries, window, softcap, sinks, packed rows",
                backends=(
                    _REFERENCE,
                    Backend(name="torch", lacks=frozenset({"softcap"})),
                    _triton("mask", "bias"),
                    _npu("softcap", "bias"),
                ),
                features=frozenset({"window", "softcap", "sinks", "mask", "bias", "documents"}),
                # PyTorch brings FlashAttention there.
                orders=_TORCH_FIRST,
            ),
            Operator(
                name="router_topk",
                summary="experts of each token: softmax, sigmoid with bias, group-limited",
                backends=(_REFERENCE, _npu("unnormalized_sigmoid")),
                features=frozenset({"unnormalized_sigmoid"}),
            ),
            Operator(
                name="permute",
                summary="tokens copied and sorted by expert",
                backends=(_REFERENCE, _npu()),
            ),
            Operator(
                name="grouped_matmul",
                summary="one product a group of rows, groups may be empty",
                backends=(_REFERENCE, _TORCH, _npu()),
            ),
            Operator(
                name="unpermute",
                summary="experts' outputs weighted, summed, in the order of tokens",
                backends=(_REFERENCE, _npu()),
            ),
            Operator(
                name="causal_conv1d",
                summary="depthwise convolution over tokens, with state and silu",
                # npu_fused_causal_conv1d has kernels of 3 taps and no gradient.
                backends=(_REFERENCE, _TORCH, _triton()),
                orders=_TORCH_FIRST,
            ),
            Operator(
                name="gated_delta_rule",
                summary="linear attention by the gated delta rule, in chunks",
                # npu_recurrent_gated_delta_rule is for decoding: 8 tokens, no gradient.
                backends=(_REFERENCE, _TORCH, _triton()),
                orders=_TORCH_FIRST,
            ),
            Operator(
                name="mamba2_scan",
                summary="Mamba-2's state space, in chunks",
                backends=(_REFERENCE, _TORCH, _triton()),
                orders=_TORCH_FIRST,
            ),
            Operator(
                name="dsa_indexer",
                summary="keys that a query attends to, by a lightning indexer",
                backends=(_REFERENCE, _TORCH, _npu("other_sizes", lacks_dtypes=["float32"])),
                features=frozenset({"other_sizes"}),
            ),
            Operator(
                name="sparse_attention",
                summary="attention over chosen keys, one latent for all heads",
                backends=(_REFERENCE, _TORCH, _npu("other_sizes", lacks_dtypes=["float32"])),
                features=frozenset({"other_sizes"}),
            ),
        )
    }
)


def operator(name: str) -> Operator:
    """The operator of that name; UnknownNameError lists those there are."""
    found = OPERATORS.get(name)
    if found is None:
        raise UnknownNameError("operator", name, OPERATORS)
    return found
