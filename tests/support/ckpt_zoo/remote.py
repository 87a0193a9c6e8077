"""Tiny models of families that need code from their authors; written and run by hand here."""

from ckpt_zoo import remote_by_hand, remote_llama_like, remote_moe

CASES = (*remote_llama_like.CASES, *remote_moe.CASES, *remote_by_hand.CASES)
