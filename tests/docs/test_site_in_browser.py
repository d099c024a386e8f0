"""The documentation site in a browser: built as by `make docs`, served, and checked with axe."""

from __future__ import annotations

import functools
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from support.servers import programs

ROOT = Path(__file__).parents[2]
MKDOCS = ROOT / ".venv-docs/bin/mkdocs"


class Quiet(SimpleHTTPRequestHandler):
    """The files of a folder, without a log."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a site of the pages as they are now."""
    if not MKDOCS.exists():
        programs.missing("the packages of the site are not installed (make docs)")
    folder = tmp_path_factory.mktemp("site")
    command = [MKDOCS, "build", "--strict", "--quiet", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_pages_are_accessible_on_a_desk_and_a_phone_light_and_dark(site: str, tmp_path: Path) -> None:
    browser = programs.found("Chromium", *programs.CHROMIUM)
    programs.npm()
    env = {"PAGE": site, "CHROMIUM": browser, "OUT": str(tmp_path)}
    printed = programs.run("npm", "run", "test:site", env=env)
    assert re.search("^# pass 5$", printed, re.M), printed
