"""The zoo: tiny models of every family, for tests of llm-ckpt and of what reads its weights."""

from ckpt_zoo import dense, latent, moe, remote, state_space
from ckpt_zoo.case import Case

CASES: tuple[Case, ...] = (
    *dense.CASES,
    *latent.CASES,
    *moe.CASES,
    *remote.CASES,
    *state_space.CASES,
)

__all__ = ["CASES", "Case"]
