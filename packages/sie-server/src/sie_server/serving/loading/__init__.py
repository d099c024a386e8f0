"""One version of a model from files to a working engine, and back to free memory."""
