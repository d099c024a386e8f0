"""Readers of a checkpoint directory: its configuration files → `ModelSpec`."""
