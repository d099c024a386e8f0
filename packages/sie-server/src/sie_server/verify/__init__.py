"""Comparison of this engine with reference libraries (`sie-server verify`)."""
