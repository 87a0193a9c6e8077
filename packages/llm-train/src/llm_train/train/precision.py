"""Torch's name of each precision."""

from collections.abc import Mapping

import torch

from llm_train.config import Precision

DTYPES: Mapping[Precision, torch.dtype] = {
    Precision.FP32: torch.float32,
    Precision.BF16: torch.bfloat16,
    Precision.FP16: torch.float16,
}
