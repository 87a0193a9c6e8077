"""One step of AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101)."""
