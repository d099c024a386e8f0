"""A checkpoint's tokenizer files → the tokenizer that transformers builds of them."""
