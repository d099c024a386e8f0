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
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from sie_server.offline.errors import OfflineError

FORMAT = 1


def key_of(*parts: object) -> str:
    """Return a digest of values that JSON can hold."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:24]


class Journal:
    """Results by key. Use it as a context manager, or call `close()`.

    With a file, only the place of each result is kept in memory, about 0.2 kB per piece.
    """

    def __init__(self, path: Path | None, about: Mapping[str, Any]) -> None:
        """Open or create a journal; without a path it is kept in memory only.

        Raises:
            OfflineError: the file belongs to another work, another process writes it, or it cannot be used.
        """
        self._path = path
        self._about = {"format": FORMAT, **about}
        self._kept: dict[str, bytes] = {}  # lines, without a file
        self._places: dict[str, tuple[int, int]] = {}  # first byte and length of lines, in the file
        self._end = 0  # of the last whole line
        self._file: FileIO | None = None
        if path is not None:
            try:
                self._file = self._opened(path)
            except OSError as error:
                raise OfflineError(f"cannot use {path}: {error.strerror or error}") from None

    def __contains__(self, key: str) -> bool:
        return key in (self._kept if self._path is None else self._places)

    def __getitem__(self, key: str) -> Any:
        """Return the result in the form that JSON gives it.

        Raises:
            KeyError: the piece is not finished.
            OfflineError: the file can no longer be read.
        """
        if self._file is None:
            return msgspec.json.decode(self._kept[key])["result"]
        start, length = self._places[key]
        try:
            return msgspec.json.decode(os.pread(self._file.fileno(), length, start))["result"]
        except (OSError, msgspec.MsgspecError) as error:
            raise OfflineError(
                f"cannot read {self._path} again: {error}; start the same command again"
            ) from None

    def add(self, key: str, result: Any) -> None:
        """Keep the result of a finished piece.

        Raises:
            OfflineError: the file cannot be written.
        """
        line = msgspec.json.encode({"key": key, "result": result})
        if self._file is None:
            self._kept[key] = line
            return
        start = self._end
        try:
            self._append(self._file, line + b"\n")
        except OSError as error:
            step = "make room, then start the same command again"
            raise OfflineError(f"cannot write {self._path}: {error.strerror or error}; {step}") from None
        self._places[key] = start, len(line)

    def remove(self) -> None:
        """Delete the file, after all results are used. Raises OfflineError."""
        if self._path is not None:
            try:
                self._path.unlink(missing_ok=True)
            except OSError as error:
                raise OfflineError(f"cannot delete {self._path}: {error.strerror or error}") from None

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

    def _opened(self, path: Path) -> FileIO:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644), "r+")
        try:
            self._lock(file, path)
            self._read(file, path)
        except BaseException:
            file.close()
            raise
        return file

    def _lock(self, file: FileIO, path: Path) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OfflineError(
                f"another process writes {path}; wait for its end, or choose another --out"
            ) from None

    def _append(self, file: FileIO, data: bytes) -> None:
        """Write a line whole or, where there is no room for it, not at all: a later line must not follow a torn one."""
        left = memoryview(data)
        try:
            while left:
                left = left[file.write(left) or 0 :]
        except OSError:
            file.truncate(self._end)
            raise
        self._end += len(data)

    def _read(self, file: FileIO, path: Path) -> None:
        with open(file.fileno(), "rb", closefd=False) as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):  # the process ended while it wrote this line
                    file.truncate(self._end)
                    break
                self._find(line, number, path)
                self._end += len(line)
        if self._end == 0:
            self._append(file, msgspec.json.encode(self._about) + b"\n")

    def _find(self, line: bytes, number: int, path: Path) -> None:
        try:
            value = msgspec.json.decode(line)
            if number == 1:
                self._compare(value, path)
            else:
                value["result"]
                self._places[str(value["key"])] = self._end, len(line) - 1
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
                "choose another --out, or delete the file"
            )
