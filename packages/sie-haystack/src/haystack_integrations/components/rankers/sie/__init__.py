"""A Haystack ranker for a SIE server."""

from haystack_integrations.components.rankers.sie.ranker import SIERanker

__all__ = ["SIERanker"]
