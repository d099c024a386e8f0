"""Limits and usage of API keys, and the pace of refusals."""
