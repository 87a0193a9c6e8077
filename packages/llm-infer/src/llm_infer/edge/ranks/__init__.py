"""The processes of a model that is divided among ranks of one machine (`--tp`)."""
