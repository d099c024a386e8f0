"""The tokeniser threads: the pool that requests run on, and the crew of idle threads that help them."""

from sie_server.serving.tokenizing.pool import LARGE_THREADS, TokenizerPool

__all__ = ["LARGE_THREADS", "TokenizerPool"]
