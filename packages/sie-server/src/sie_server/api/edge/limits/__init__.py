"""Limits and usage of API keys: requests per second, requests in progress, tokens per minute."""
