"""Which replica serves a request, and what happens to the calls of one that has become silent."""
