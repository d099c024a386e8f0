"""The engine: checkpoints, tokenisation, batches and results; everything from texts to scores except serving.

Serving uses `Engine`, `Job` and the types of a job; rooms and their order are in `pyproject.toml` (import-linter).
"""
