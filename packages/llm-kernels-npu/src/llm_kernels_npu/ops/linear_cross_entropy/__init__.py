"""The output layer and its cross entropy as one, so that the logits never exist all at once."""
