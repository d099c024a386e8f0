"""Files of tensors → readers of single tensors, which check a file before they read values from it."""
