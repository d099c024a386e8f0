"""A local model hub that answers the requests of `huggingface_hub` from a folder of checkpoints.

Requests: https://huggingface.co/docs/hub/api (model info, tree) and the `resolve` addresses of files. Weights are large
files, which the hub names by their SHA-256.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

PIECE = 256 * 1024


class Hub(ThreadingHTTPServer):
    """Serves `folder`/ORGANISATION/NAME/…; every repository has one commit, named by `main` and by its hash."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.pause_s = 0.0  # after each piece of a file
        self.held: str | None = None  # a file of which only the first half is sent until this changes
        self.spoiled: str | None = None  # a file that is sent with another content
        self.sent: list[str] = []  # downloaded files
        self.requests: list[tuple[str, str]] = []  # path and user agent of every request

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that was killed
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self, repository: str) -> dict[str, Path]:
        root = self.folder / repository
        return {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}

    def commit(self, repository: str) -> str:
        """Return the commit's hash, which changes with every file."""
        names = [f"{name} {blob(path)}" for name, path in self.files(repository).items()]
        return hashlib.sha1("\n".join(names).encode()).hexdigest()


@contextmanager
def running(folder: Path) -> Iterator[Hub]:
    with Hub(folder) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def blob(path: Path) -> str:
    """Return git's blob id of a file's content."""
    return _hashed(path, path.stat().st_mtime_ns, path.stat().st_size, "sha1")


def sha256(path: Path) -> str | None:
    """Return the name of a large file's content; None: the file is small."""
    if path.suffix != ".safetensors":
        return None
    return _hashed(path, path.stat().st_mtime_ns, path.stat().st_size, "sha256")


@functools.cache  # every request needs the hashes of all files
def _hashed(path: Path, mtime_ns: int, size: int, kind: str) -> str:
    content = path.read_bytes()
    head = b"blob %d\0" % len(content) if kind == "sha1" else b""
    return hashlib.new(kind, head + content).hexdigest()


def _large(path: Path, key: str) -> dict[str, Any]:
    """Return what an answer adds for a large file; `key` is its name for the hash."""
    named = {key: sha256(path), "size": path.stat().st_size, "pointerSize": 130}
    return {"lfs": named} if named[key] else {}


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.server.requests.append((f"POST {self.path}", str(self.headers.get("User-Agent"))))
        self._refuse("EntryNotFound")

    def do_GET(self) -> None:
        self.server.requests.append((self.path, str(self.headers.get("User-Agent"))))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), parts[4:])
        elif len(parts) > 4 and parts[2] == "resolve":
            self._send("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._refuse("EntryNotFound")

    def _describe(self, repository: str, rest: list[str]) -> None:
        files = self.server.files(repository)
        if not files:
            self._refuse("RepoNotFound")
        elif len(rest) > 1 and rest[1] not in ("main", self.server.commit(repository)):
            self._refuse("RevisionNotFound")
        elif rest[:1] == ["tree"]:
            self._answer([{"type": "file", "path": name, "size": path.stat().st_size, "oid": blob(path),
                           **_large(path, "oid")}
                          for name, path in files.items()])  # fmt: skip
        else:
            siblings = [{"rfilename": name, "size": path.stat().st_size, "blobId": blob(path),
                         **_large(path, "sha256")}
                        for name, path in files.items()]  # fmt: skip
            self._answer({"id": repository, "sha": self.server.commit(repository), "siblings": siblings})

    def _send(self, repository: str, revision: str, name: str) -> None:
        path = self.server.files(repository).get(name)
        if path is None:
            self._refuse("EntryNotFound")
            return
        content = path.read_bytes()
        if self.server.spoiled == name:
            content = bytes(len(content))
        self.send_response(200)
        self.send_header("ETag", f'"{sha256(path) or blob(path)}"')
        self.send_header("X-Repo-Commit", self.server.commit(repository))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.server.sent.append(name)
        piece = min(PIECE, len(content) // 2 + 1)
        for start in range(0, len(content), piece):
            self.wfile.write(content[start : start + piece])
            self.wfile.flush()
            time.sleep(self.server.pause_s)
            while self.server.held == name:
                time.sleep(0.02)

    def _answer(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass
