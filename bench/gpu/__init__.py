"""One command of at most four minutes that says what a GPU does with this engine: see bench/README.md."""
