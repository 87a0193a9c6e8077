"""Tokenizer backends."""
