"""Decoder families; tokens see those before them, unless the model was trained to see all."""
