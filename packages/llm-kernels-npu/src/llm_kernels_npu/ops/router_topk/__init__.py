"""The experts that a token goes to, and their weights (DeepSeek-V3, arXiv:2412.19437, §2.1.2)."""
