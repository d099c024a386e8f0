"""The device: its queue, its thread, its health."""
