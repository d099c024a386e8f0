"""Everything between the socket and a route: API keys, CORS and request bodies."""
