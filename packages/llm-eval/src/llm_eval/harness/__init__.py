"""lm-evaluation-harness as the engine: its tasks and its models, driven from here."""
