"""The residual sum and its root-mean-square normalisation as one, as pre-norm layers have it."""
