"""Cross entropy of logits whose vocabulary is spread over ranks, without gathering them."""
