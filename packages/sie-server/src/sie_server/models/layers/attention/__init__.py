"""Attention over a packed batch: full, causal, within a window, with a bias.

`choice` decides between two ways to compute it. *Varlen* reads the sequences of a batch at their own lengths
(`varlen`). *Dense* multiplies groups of equal slots as dense blocks, with masks (`models.batch.Group`).
"""
