"""Encoder families; tokens see the whole of their sequence."""
