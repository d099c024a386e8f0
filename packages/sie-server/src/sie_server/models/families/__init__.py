"""Transformer families: the fields each reads from `config.json`, and its forward pass."""
