"""Conversion rules: frozen values, each a pure pair merge (HF tensors → one) and split (back).

The law that lets a rank read only its slice: for every rule that `commutes` and every rank,
`merge(cut(part) for part in parts) == cut(merge(parts))`, where `part_cuts` says how each Hugging
Face part is cut. Rules know no process group.

In a name `{i}` stands for the layer, `{e}` for the expert, `{m}` for the prediction layer and `{n}`
for that one's number when it is counted on from the decoder's; `{h}` and `{s}` are the half of the
layer's number and what is left over, for families that count layers in pairs. A Hugging Face name
that ends in `[{e}]` is entry e of a tensor that holds all experts on axis 0.
"""

from llm_ckpt.rules.attention import PackedQkv, Qkv
from llm_ckpt.rules.feed_forward import Glu, InterleavedGlu
from llm_ckpt.rules.linear_attention import GdnApart, GdnIn
from llm_ckpt.rules.rule import Row, Rule, Same, Transposed

# Rules whose merge lays the parts end to end on axis 0: they can be read into their places.
STACKED: tuple[type[Rule], ...] = (Glu, Same)

__all__ = [
    "STACKED",
    "GdnApart",
    "GdnIn",
    "Glu",
    "InterleavedGlu",
    "PackedQkv",
    "Qkv",
    "Row",
    "Rule",
    "Same",
    "Transposed",
]
