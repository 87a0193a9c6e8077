"""Linear layers of a model with weights in oneDNN's layout, for as long as texts are generated.

A step of generation multiplies 2 to 32 rows with each weight. MKL, which torch uses for float32 on
a CPU, takes several times as long for that as oneDNN with a weight it has laid out before.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# The copies take at most so much, whatever the model: a fixed number, so that results do not
# depend on what else the machine holds.
MAX_PACKED_BYTES = 4 << 30
# Of smaller weights the product takes no longer than the call.
_FEWEST_WEIGHTS = 1 << 16
# Rows that oneDNN lays the weights out for; others are right too.
_EXPECTED_ROWS = 16


@contextmanager
def packed(model: PreTrainedModel, *, max_bytes: int = MAX_PACKED_BYTES) -> Iterator[None]:
    """Have the model's float32 linear layers on a CPU multiply with packed copies of their weights.

    The output layer first, then the others in the model's order, while their copies fit in
    `max_bytes`; the rest, and every layer of another device or type, stays as it is. Products
    differ by rounding. The weights must not change meanwhile. Without gradients.
    """
    with ExitStack() as undo:
        for layer in _chosen(model, max_bytes):
            vars(layer)["forward"] = _product(layer)
            undo.callback(vars(layer).pop, "forward")
        yield


def _chosen(model: PreTrainedModel, max_bytes: int) -> Iterator[nn.Linear]:
    if not torch.backends.mkldnn.is_available():
        return
    head = model.get_output_embeddings()
    others = (module for module in model.modules() if module is not head)
    for layer in (head, *others):
        if not (isinstance(layer, nn.Linear) and _is_plain(layer)):
            continue
        if layer.weight.nbytes <= max_bytes:
            max_bytes -= layer.weight.nbytes
            yield layer


def _is_plain(layer: nn.Linear) -> bool:
    """Torch's own layer, not one that a library has derived or changed."""
    weight = layer.weight
    return (
        type(layer) is nn.Linear
        and "forward" not in vars(layer)
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.numel() >= _FEWEST_WEIGHTS
    )


def _product(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _EXPECTED_ROWS)
    bias = layer.bias

    def forward(x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    return forward
