"""How fast the heads of a new model forget: rates and steps of time spread over the heads.

The authors of Mamba2 and of gated delta nets draw both at random between these bounds; spread
evenly they are the same at every layout.
"""

import math

import torch

RATES = (1.0, 16.0)
STEPS = (1e-3, 1e-1)
_GOLDEN = (math.sqrt(5) - 1) / 2


def first_log_rates(heads: int) -> torch.Tensor:
    """A_log [heads]: a state decays by exp(−exp(A_log) · step) in a token."""
    return torch.linspace(*RATES, heads).log()


def first_step_biases(heads: int) -> torch.Tensor:
    """dt_bias [heads]: softplus of it is spread evenly in the logarithm over STEPS.

    In the golden ratio's order, so that steps and rates do not go together.
    """
    low, high = (math.log(step) for step in STEPS)
    places = torch.arange(heads, dtype=torch.float64) * _GOLDEN % 1
    steps = (low + (high - low) * places).exp()
    return (steps + (-torch.expm1(-steps)).log()).float()
