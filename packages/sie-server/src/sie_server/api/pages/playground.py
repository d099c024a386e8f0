"""The playground: a page at / that reranks documents in a browser. Static files, without a build and another host.

The page needs no API key. Its requests to the API do, like those of any client. All addresses are relative, so the page
works below any prefix of a proxy. Only browsers get it, because clients of other vendors use the path / too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Match, Route

from sie_server import __version__
from sie_server.api.edge.paths import base_to_root, is_browsing

FILES = Path(__file__).parent / "static"
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
# Scripts and styles are files of this server, and the scripts write texts as text only, never as HTML.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class PageRoute(Route):
    """The path / for browsers. For all other clients there is no such route, so they get the response of before."""

    def matches(self, scope: Any) -> tuple[Match, Any]:
        """See `Route.matches`."""
        return super().matches(scope) if is_browsing(scope) else (Match.NONE, {})


async def page(request: Request) -> Response:
    """GET /"""
    root = base_to_root(request.scope)
    return HTMLResponse(html(root), headers={**HEADERS, "Vary": "Accept"})


async def file(request: Request) -> Response:
    """GET /playground/{name}: from memory, because the route needs no key"""
    name = request.path_params["name"]
    found = files().get(name)
    if found is None:
        raise HTTPException(404)
    return Response(found, media_type=TYPES[Path(name).suffix], headers=HEADERS)


@cache
def html(root: str) -> str:
    """Return the page; `root` is the relative address of the server's root, such as `./` or `sie/`."""
    text = (FILES / "index.html").read_text(encoding="utf-8")
    return text.replace("{root}", root).replace("{version}", __version__)


@cache
def files() -> Mapping[str, bytes]:
    """Return the files of the page by their names, such as `js/app.js`."""
    found = sorted(path for path in FILES.rglob("*") if path.suffix in TYPES)
    return {path.relative_to(FILES).as_posix(): path.read_bytes() for path in found}


ROUTES = [PageRoute("/", page), Route("/playground/{name:path}", file)]
