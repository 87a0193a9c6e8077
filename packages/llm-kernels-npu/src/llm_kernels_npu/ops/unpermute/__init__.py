"""The experts' outputs back in the order of the tokens, weighted and summed."""
