"""Models: their specs and checkpoints, their forward passes and their heads."""
