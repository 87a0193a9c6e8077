"""Layer normalisation (Ba et al. 2016, arXiv:1607.06450)."""
