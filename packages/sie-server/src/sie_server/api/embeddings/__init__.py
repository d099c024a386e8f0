"""Embeddings in other vendors' APIs: OpenAI's and infinity's routes, and those of TEI."""
