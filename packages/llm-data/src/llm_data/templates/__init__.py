"""Chat templates: data files, the engine that renders them and the proof of their masks."""
