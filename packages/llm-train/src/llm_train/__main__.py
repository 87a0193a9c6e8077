"""`python -m llm_train`, which the launcher starts its ranks with."""

from llm_train.cli import main

main()
