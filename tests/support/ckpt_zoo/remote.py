"""Tiny models of families that need code from their authors; written and run by hand here."""

from ckpt_zoo.case import Case

CASES: tuple[Case, ...] = ()
