"""The settings in a checkpoint's files: which keys count, which are refused, and which have no effect on scores."""
