"""Code shared by SIE's Haystack components."""

from haystack_integrations.common.sie.version import __version__  # isort: skip  # the check comes first
from haystack_integrations.common.sie.connection import API_KEY, Connected, text_of

__all__ = ["API_KEY", "Connected", "__version__", "text_of"]
