"""Encoder families: bidirectional attention."""
