"""Limits that containers set for this process, and the GPU."""
