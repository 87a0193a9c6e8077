"""Tokenizer backends: whole texts to ids, the same ids from each."""
