"""PEFT adapters: configuration, tensors, and the changes they make to a loaded model."""
