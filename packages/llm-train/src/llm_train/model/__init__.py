"""From arch.json to megatron-core modules."""
