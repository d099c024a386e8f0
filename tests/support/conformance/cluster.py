"""A cluster in the place of one server: the tests of the single server run against `sie-server serve --ray`.

The cluster needs more than the server to start: an admin key, a table `[cluster]`, a models directory.
Everything else comes from the test.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from support.conformance.switch import replicas
from support.requests.questions import KEY
from support.servers import processes
from support.servers.clusters import ADMIN_KEY, end_all
from support.servers.processes import Server

# Less than a CPU each, because Ray starts no replica that does not fit the machine.
TABLE = f"""
[cluster]
ingress_cpus = 0.1
[cluster.pools.default]
cpus = 0.1
min_replicas = {replicas()}
"""


@contextlib.contextmanager
def running(folder: Path, *args: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    """Start `serve --ray` with the arguments of a test, and yield it once ready."""
    settings = dict(env or {})
    # its name is short, because Ray's sockets are in it
    with tempfile.TemporaryDirectory(prefix="c", ignore_cleanup_errors=True) as name:
        temporary = Path(name)
        options = ["--ray", "--config", str(_configuration(temporary, list(args), settings))]
        if not _sets(args, settings, "models-dir"):  # admin calls write the state of the cluster there
            (temporary / "models").mkdir()
            options += ["--models-dir", str(temporary / "models")]
        key = _admin_key(args, settings)
        settings["RAY_TMPDIR"] = name
        try:
            with processes.single(folder, *_without(args, "--config"), *options, env=settings) as server:
                server.admin_key = key
                yield server
        finally:
            end_all(name)


def _configuration(temporary: Path, args: list[str], settings: dict[str, str]) -> Path:
    """Write the configuration file of the test with the table of the cluster."""
    given = settings.pop("SIE_CONFIG", "")
    for place, one in enumerate(args):
        if one == "--config":
            given = args[place + 1]
    file = temporary / "cluster.toml"
    file.write_text((Path(given).read_text(encoding="utf-8") if given else "") + TABLE, encoding="utf-8")
    return file


def _without(args: tuple[str, ...], flag: str) -> list[str]:
    """Leave out a flag that stands with its value in the next argument."""
    places = [place for place, one in enumerate(args) if one == flag]
    return [one for i, one in enumerate(args) if i not in places and i - 1 not in places]


def _sets(args: tuple[str, ...], settings: dict[str, str], option: str) -> bool:
    variable = "SIE_" + option.upper().replace("-", "_")
    return variable in settings or any(one.partition("=")[0] == f"--{option}" for one in args)


def _admin_key(args: tuple[str, ...], settings: dict[str, str]) -> str:
    """Add a key for admins unless the test brings one, and return it if admin calls of the test need it.

    Without keys every caller on this machine is an admin of one server, but not of a cluster.
    """
    given = settings.get("SIE_API_KEYS", "")
    if ":admin:" in given or _sets(args, settings, "api-keys-file"):
        return ""
    # a server without keys ignores the one that clients send; a cluster has keys, so it must know theirs
    settings["SIE_API_KEYS"] = f"{given or f'clients:infer:{KEY}'},ops:admin:{ADMIN_KEY}"
    if given:
        return ""
    settings["SIE_OPEN_INFERENCE"] = "1"
    return ADMIN_KEY
