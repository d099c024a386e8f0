"""The page /docs and the examples that it offers."""
