"""Texts → token ids: tokenisation, prompts, windows of long documents, shared prefixes."""
