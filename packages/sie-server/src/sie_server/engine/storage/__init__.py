"""Checkpoints on disk and on the hub, their weights, and the memory they take."""
