"""The finished pieces of a work in a file, so that the work resumes where it was interrupted.

The first line describes the work. Every other line is one finished piece: its key and its result. A line is written
when its piece is finished, so a killed process loses only the pieces that were in progress. A key should be a digest of
everything that the result depends on: changed input is then done anew, and unchanged input is not.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import msgspec

from sie_server.offline.errors import OfflineError

FORMAT = 1


def key_of(*parts: object) -> str:
    """Return a digest of values that JSON can hold."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:24]


class Journal:
    """Results by key. Use it as a context manager, or call `close()`."""

    def __init__(self, path: Path | None, about: Mapping[str, Any]) -> None:
        """Open or create a journal; without a path it is kept in memory only.

        Raises:
            OfflineError: the file belongs to another work, another process writes it, or it cannot be used.
        """
        self._path = path
        self._about = {"format": FORMAT, **about}
        self._found: dict[str, Any] = {}
        self._file: BinaryIO | None = None
        if path is not None:
            try:
                self._file = self._opened(path)
            except OSError as error:
                raise OfflineError(f"cannot use {path}: {error.strerror or error}") from None

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Any:
        """Return the result in the form that JSON gives it."""
        return self._found[key]

    def add(self, key: str, result: Any) -> None:
        """Keep the result of a finished piece.

        Raises:
            OfflineError: the file cannot be written.
        """
        line = msgspec.json.encode({"key": key, "result": result})
        if self._file is not None:
            try:
                self._file.write(line + b"\n")
                self._file.flush()
            except OSError as error:
                step = "make room, then start the same command again"
                raise OfflineError(f"cannot write {self._path}: {error.strerror or error}; {step}") from None
        self._found[key] = msgspec.json.decode(line)["result"]

    def close(self) -> None:
        """Close the file. Later pieces cannot be added."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self, path: Path) -> BinaryIO:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644), "a+b")
        try:
            self._lock(file, path)
            self._read(file, path)
        except BaseException:
            file.close()
            raise
        return file

    def _lock(self, file: BinaryIO, path: Path) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OfflineError(
                f"another process writes {path}; wait for its end, or choose another directory with --out"
            ) from None

    def _read(self, file: BinaryIO, path: Path) -> None:
        file.seek(0)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # the process ended while it wrote this line
            file.truncate(len(whole))
        lines = whole.splitlines()
        if not lines:
            file.write(msgspec.json.encode(self._about) + b"\n")
            file.flush()
            return
        for number, line in enumerate(lines, 1):
            try:
                value = msgspec.json.decode(line)
                if number == 1:
                    self._compare(value, path)
                else:
                    self._found[value["key"]] = value["result"]
            except (msgspec.MsgspecError, UnicodeError, LookupError, TypeError, AttributeError):
                raise OfflineError(
                    f"{path}, line {number}: not a line of a journal; delete the file to do its work anew"
                ) from None

    def _compare(self, found: dict[str, Any], path: Path) -> None:
        now = msgspec.json.decode(msgspec.json.encode(self._about))
        names = [name for name in {**found, **now} if found.get(name) != now.get(name)]
        if names:
            name = names[0]
            raise OfflineError(
                f"{path} has results of another work: {name} was {found.get(name)!r} and is {now.get(name)!r}; "
                "choose another directory with --out, or delete the file"
            )
