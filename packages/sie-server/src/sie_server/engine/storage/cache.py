"""One repository in the hub's cache: which commits it holds, and what is known of their files.

The layout is documented (https://huggingface.co/docs/huggingface_hub/guides/manage-cache): `refs/` says which commit a
branch or tag meant, `snapshots/COMMIT/` has a link for every file, and `blobs/` the contents, named by their hashes.
`trees/COMMIT.json`, which later versions of the library write, lists all files of a commit with sizes and hashes.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from sie_server.engine.storage.integrity import SHA1, Expected, hashes
from sie_server.files import entries, expanded, read_json, read_text

log = logging.getLogger("sie_server.hub")
MAIN = "main"  # the branch that a source without a revision means
DEPTH = 4  # folders: the deepest names are references such as refs/pr/1
REF_BYTES = 4096
WEIGHTS = (".safetensors", ".bin", ".pt")


class NoCache(Exception):
    """The hub's cache has no place: the user has no home directory, and no variable names another one."""


class CachedRepository:
    """The cache's folder of ORGANISATION/NAME. It may not exist, and any file in it may be damaged."""

    def __init__(self, source: str) -> None:
        from huggingface_hub.constants import HF_HUB_CACHE

        cache = expanded(HF_HUB_CACHE)
        if str(cache).startswith("~"):  # the library would make a folder of this name where the server runs
            raise NoCache("this user has no home directory; set HF_HOME to a directory for the hub's cache")
        # `repo_folder_name` of the library raises for a source that is no hub id
        self.folder = cache / f"models--{source.replace('/', '--')}"
        self.blobs = self.folder / "blobs"
        self._refs, self.snapshots = self.folder / "refs", self.folder / "snapshots"

    def snapshot(self, commit: str) -> Path:
        """Return the directory of a commit's files."""
        return self.snapshots / commit

    def commits(self, revision: str | None) -> list[str]:
        """Return the commits with a snapshot that may serve this revision, the best one first.

        A revision that was requested is never replaced. Without one, the branch `main` is meant. The older snapshots
        that no other branch or tag names follow it, the newest first.
        """
        meant = revision if revision and SHA1.fullmatch(revision) else self._meant(revision or MAIN)
        found = [meant] if meant and self.snapshot(meant).is_dir() else []
        if revision is None:
            other = {self._meant(name) for name in _names(self._refs) if name != MAIN}
            times = self._times()
            latest = times.get(meant or "", math.inf)
            found += [
                commit
                for commit, time in times.items()
                if commit != meant and commit not in other and time <= latest
            ]
        return found

    def newer(self, commit: str) -> list[str]:
        """Return the commits whose snapshots are newer than that of `commit`."""
        times = self._times()
        return [other for other in times if times[other] > times.get(commit, 0.0)]

    def _meant(self, revision: str) -> str | None:
        """Return the commit that a branch or tag meant at its last download."""
        with suppress(OSError, ValueError):
            commit = read_text(self._ref(revision), REF_BYTES).strip()
            return commit if SHA1.fullmatch(commit) else None
        return None

    def _times(self) -> dict[str, float]:
        """Return the commits with a snapshot and the time of its last change, the newest first."""
        times: dict[str, float] = {}
        with suppress(OSError, ValueError):  # ValueError: the source contains a zero
            for entry in entries(self.snapshots):
                if SHA1.fullmatch(entry.name) and entry.is_dir():
                    times[entry.name] = entry.stat().st_mtime
        return dict(sorted(times.items(), key=lambda item: -item[1]))

    def record(self, revision: str, commit: str) -> None:
        """Record which commit a branch or tag means. The cache may be read-only or full: the next load tries again."""
        if revision == commit or self._meant(revision) == commit:
            return
        try:
            path = self._ref(revision)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
            try:
                part.write_text(commit, encoding="utf-8")
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        except (OSError, ValueError) as error:
            log.info("cannot record in %s that %r is %s: %s", self._refs, revision, commit, error)

    def _ref(self, revision: str) -> Path:
        """Return the file of a branch or tag. Raises ValueError if it would be outside the folder."""
        name = PurePosixPath(revision)
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(f"{revision!r} is no branch or tag")
        return self._refs / name

    # ── the files of a commit ──

    def known(self, commit: str) -> dict[str, Expected]:
        """Return the files of a commit, and their hashes from its listing or from the contents that its links name."""
        snapshot = self.snapshot(commit)
        present = {
            name: Expected(None, ()) for name in _names(snapshot)
        }  # the listing may be damaged as well
        return {
            name: Expected(known.size, known.hashes or _named(snapshot / name))
            for name, known in {**present, **(self.listing(commit) or {})}.items()
        }

    def listing(self, commit: str) -> dict[str, Expected] | None:
        """Return the entries of `trees/` for a commit; None: there is no such file, or it is damaged."""
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            files: dict[str, Any] = read_json(self._listing(commit))["files"]
            return {
                name: Expected(int(known["size"]), hashes(known.get("lfs_sha256") or known["blob_id"]))
                for name, known in files.items()
            }
        return None

    def correct_listing(self, commit: str, files: dict[str, Expected]) -> None:
        """Delete a listing that differs from the hub, because the library would use it."""
        path = self._listing(commit)
        if path.exists() and self.listing(commit) != files:
            with suppress(OSError):
                path.unlink()

    def _listing(self, commit: str) -> Path:
        return self.folder / "trees" / f"{commit}.json"

    def lacking(self, commit: str) -> str | None:
        """Return what a snapshot without a listing obviously lacks; None: nothing, as far as its files say."""
        snapshot = self.snapshot(commit)
        names = set(_names(snapshot))
        if not names & {"config.json", "adapter_config.json"}:
            return "config.json"
        if not any(name.endswith(WEIGHTS) for name in names):
            return "model.safetensors"
        for index in (name for name in names if name.endswith(".index.json")):
            with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
                shards = set(read_json(snapshot / index)["weight_map"].values())
                if missing := sorted(str(shard) for shard in shards - names):
                    return missing[0]
        return None


def _named(link: Path) -> tuple[str, ...]:
    """Return the hash in the name of the content that a link of a snapshot points to."""
    with suppress(OSError, ValueError):  # no link: the cache was copied
        content = link.readlink()
        if content.parent.name == "blobs":
            return hashes(content.name)
    return ()


def _names(folder: Path, depth: int = DEPTH) -> Iterator[str]:
    """Yield the files below a folder, dangling links included, by their names in it."""
    with suppress(OSError, ValueError):
        for entry in entries(folder):
            if not entry.is_dir(follow_symlinks=False):
                yield entry.name
            elif depth > 1:
                yield from (f"{entry.name}/{name}" for name in _names(Path(entry.path), depth - 1))
