"""Embeddings as other vendors' clients ask for them: OpenAI's and infinity's routes, and those of TEI."""
