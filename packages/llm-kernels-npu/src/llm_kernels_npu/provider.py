"""The operators as one object: the entry point of `llm_train.kernels` and `llm_infer.kernels`."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from llm_kernels_npu.errors import UnknownNameError
from llm_kernels_npu.registry import OPERATORS
from llm_kernels_npu.select import AUTO, Choice, bind, choose
from llm_kernels_npu.signatures import (
    Adamw,
    AddRmsNorm,
    Attention,
    CausalConv1d,
    CrossEntropy,
    DsaIndexer,
    GatedDeltaRule,
    Geglu,
    GroupedMatmul,
    LayerNorm,
    LinearCrossEntropy,
    Mamba2Scan,
    MatmulAdd,
    Permute,
    RingAttentionUpdate,
    RmsNorm,
    Rope,
    RouterTopk,
    SparseAttention,
    Swiglu,
    Unpermute,
    VocabParallelCrossEntropy,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """One callable an operator, each bound to the backend in `choices`."""

    device: str
    choices: tuple[Choice, ...]
    rms_norm: RmsNorm
    swiglu: Swiglu
    rope: Rope
    cross_entropy: CrossEntropy
    linear_cross_entropy: LinearCrossEntropy
    add_rms_norm: AddRmsNorm
    layer_norm: LayerNorm
    geglu: Geglu
    vocab_parallel_cross_entropy: VocabParallelCrossEntropy
    matmul_add: MatmulAdd
    adamw: Adamw
    ring_attention_update: RingAttentionUpdate
    attention: Attention
    router_topk: RouterTopk
    permute: Permute
    grouped_matmul: GroupedMatmul
    unpermute: Unpermute
    causal_conv1d: CausalConv1d
    gated_delta_rule: GatedDeltaRule
    mamba2_scan: Mamba2Scan
    dsa_indexer: DsaIndexer
    sparse_attention: SparseAttention

    def __str__(self) -> str:
        """One line for the caller to print once: the device and each operator's backend."""
        return f"kernels on {self.device}: {', '.join(map(str, self.choices))}"


def kernels(
    *,
    device: str,
    backends: Mapping[str, str] = MappingProxyType({}),
    features: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> Kernels:
    """The operators for one device type (`cpu`, `cuda`, `npu`).

    `backends` names a backend by operator; all others are `auto`. `features` names by operator
    what the model will use (`{"attention": {"softcap"}}`), so that `auto` picks a backend that
    has it. A backend that is not here raises BackendMissingError with what would bring it.
    """
    for name in (*backends, *features):
        if name not in OPERATORS:
            raise UnknownNameError("operator", name, OPERATORS)
    choices = {
        name: choose(
            name,
            device=device,
            backend=backends.get(name, AUTO),
            features=features.get(name, ()),
        )
        for name in OPERATORS
    }
    bound: dict[str, Any] = {name: bind(choice) for name, choice in choices.items()}
    return Kernels(device=device, choices=tuple(choices.values()), **bound)
