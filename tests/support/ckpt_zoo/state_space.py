"""Tiny models with state-space layers that transformers ships."""

from ckpt_zoo.case import Case

CASES: tuple[Case, ...] = ()
