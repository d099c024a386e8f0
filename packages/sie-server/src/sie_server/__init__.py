"""SIE server: puts query-document pairs through reranker models and answers in order of relevance."""

__version__ = "1.0.0+self.1"


def install(extra: str) -> str:
    """Return the command that installs an extra. It names the folder, as another project publishes a sie-server."""
    return f"pip install './packages/sie-server[{extra}]' in a clone of this project"
