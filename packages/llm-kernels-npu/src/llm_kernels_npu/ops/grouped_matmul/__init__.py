"""One product a group of rows: the experts of a mixture, each over its own tokens."""
