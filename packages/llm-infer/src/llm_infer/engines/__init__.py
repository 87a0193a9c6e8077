"""Engines: each a way of running a model, behind `llm_infer.engine.Engine`."""
