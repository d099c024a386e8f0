"""Code shared by SIE's Haystack components."""

from haystack_integrations.common.sie.connection import API_KEY, Connected, text_of

__all__ = ["API_KEY", "Connected", "text_of"]
