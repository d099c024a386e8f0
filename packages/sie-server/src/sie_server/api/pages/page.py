"""The page /docs: Swagger UI 5 over /openapi.json, without network access and below any prefix of a proxy.

All addresses are relative, so the page needs no knowledge of the addresses that its readers see.
"""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "flask_swagger_ui"  # only its files are used: an import would import flask
# Swagger UI writes style attributes. `connect-src` keeps requests on this server.
POLICY = (
    "default-src 'none'; script-src 'self' 'sha256-{digest}'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'"
)
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>SIE API</title>
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="stylesheet" href="{root}docs/static/swagger-ui.css"></head>
<body><div id="ui" data-document="{root}openapi.json"></div>
<script src="{root}docs/static/swagger-ui-bundle.js"></script>
<script>{script}</script></body></html>
"""
# Swagger UI accepts */* until a reader selects a media type. The server would send MessagePack, which it cannot show.
SCRIPT = """const url = document.getElementById("ui").dataset.document;
function requestInterceptor(request) {
  const { accept } = request.headers;
  if (accept === "*/*") request.headers.accept = "application/json";
  return request;
}
const options = { deepLinking: true, defaultModelsExpandDepth: 0, validatorUrl: null };
SwaggerUIBundle({ url, dom_id: "#ui", requestInterceptor, ...options });
"""
DIGEST = b64encode(sha256(SCRIPT.encode()).digest()).decode()  # the only inline script that the policy allows
FILES = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}


def html(root: str) -> str:
    """Return the page; `root` is the relative address of the server's root, such as `./` or `../`."""
    policy = POLICY.format(digest=DIGEST)
    return PAGE.format(root=root.removeprefix("./"), policy=policy, script=SCRIPT)


@cache
def file(name: str) -> bytes:
    """Return one of `FILES`."""
    spec = find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None  # a requirement of this package
    return (Path(spec.origin).parent / "dist" / name).read_bytes()
