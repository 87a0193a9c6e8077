"""Cross entropy of next-token logits, one loss a row."""
