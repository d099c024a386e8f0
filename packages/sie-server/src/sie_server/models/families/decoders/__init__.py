"""Decoder families: causal attention, unless the model was trained with bidirectional attention."""
