"""Whether a request may wait: estimates, deadlines, and the patience of callers."""
