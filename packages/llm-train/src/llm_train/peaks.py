"""What a device can do at most: dense bf16 products with fp32 sums, in operations a second."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_TERA = 1e12

# From the start of the name that the device's own library gives; the longest that fits counts.
BF16_PEAKS: Mapping[str, float] = MappingProxyType(
    {
        # NVIDIA's data sheets, "Tensor Core" without sparsity.
        "NVIDIA A100": 312.0 * _TERA,
        "NVIDIA A800": 312.0 * _TERA,
        "NVIDIA H100 PCIe": 756.0 * _TERA,
        "NVIDIA H100 NVL": 835.5 * _TERA,
        "NVIDIA H100": 989.4 * _TERA,
        "NVIDIA H800": 989.4 * _TERA,
        "NVIDIA H200": 989.4 * _TERA,
        # As commonly given for the Atlas 800T A2 (376 or 313 a device) and 300T A2 (280); 24 and 20
        # cubes of 4096 multiply-adds at 1.91 GHz, and 20 at 1.71. No data sheet was at hand.
        "Ascend910B2": 376.0 * _TERA,
        "Ascend910B3": 313.0 * _TERA,
        "Ascend910B4": 280.0 * _TERA,
        # 910C: 752 in a package of two dies, each of which is a device (arXiv 2506.12708, sec. 3).
        "Ascend910_93": 376.0 * _TERA,
    }
)


def bf16_peak(device_name: str) -> float | None:
    """The peak of one device by its name; None for one that is not in the table."""
    fitting = [name for name in BF16_PEAKS if device_name.startswith(name)]
    return BF16_PEAKS[max(fitting, key=len)] if fitting else None
