"""Tiny mixture-of-experts models that transformers ships."""

from ckpt_zoo.case import Case

CASES: tuple[Case, ...] = ()
