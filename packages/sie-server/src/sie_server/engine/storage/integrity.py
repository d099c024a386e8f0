"""Files compared with their entries at the hub: a size, and the hash of the content.

The hub names a small file by git's blob id and a large one by its SHA-256
(https://huggingface.co/docs/huggingface_hub/guides/manage-cache). Mirrors also use the plain SHA-1. A hash decides
where one is known, and the size where none is. Hashing takes 1 s per GB, so a file is hashed once per process,
and again after any change of its inode.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

from sie_server.engine.storage.tally import Tally
from sie_server.files import open_regular

SHA1, SHA256 = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}")
PIECE = 4 * 2**20  # bytes read at once
_intact: set[tuple[object, ...]] = (
    set()
)  # files of this process's earlier checks: inode, its times and the hashes


class Expected(NamedTuple):
    """The known facts of a file: its size in bytes, and the hashes that its content must have."""

    size: int | None
    hashes: tuple[str, ...]


class Damage(NamedTuple):
    """A file that is not what the hub says."""

    name: str  # in the repository
    path: Path
    reason: str
    partly: bool  # it is missing or has another size, as after a download that was interrupted

    def __str__(self) -> str:
        return f"{self.name} {self.reason}"


def hashes(name: object) -> tuple[str, ...]:
    """Return a content's name if it is a hash of the content; mirrors may use other names."""
    is_hash = isinstance(name, str) and (SHA1.fullmatch(name) or SHA256.fullmatch(name))
    return (str(name),) if is_hash else ()


def damages(directory: Path, files: dict[str, Expected], tally: Tally) -> list[Damage]:
    """Return which files of a directory are missing or differ; blocking. Reads each content at most once per process.

    Raises:
        LoadStopped: the load was given up.
    """
    found = (_damage(name, directory / name, expected, tally) for name, expected in files.items())
    return [damage for damage in found if damage]


def _damage(name: str, path: Path, expected: Expected, tally: Tally) -> Damage | None:
    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            mark = (
                status.st_dev,
                status.st_ino,
                size,
                status.st_mtime_ns,
                status.st_ctime_ns,
                expected.hashes,
            )
            other_size = expected.size is not None and size != expected.size
            if not expected.hashes:
                intact = not other_size
            elif not (intact := mark in _intact):
                intact = _digests(file, size, expected.hashes, tally).issuperset(expected.hashes)
    except FileNotFoundError:
        return Damage(name, path, "is missing", partly=True)
    except (OSError, ValueError) as error:  # ValueError: the name contains a zero
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        return Damage(name, path, f"cannot be read: {reason}", partly=False)
    if intact:
        _intact.add(mark)
        return None
    if other_size:
        return Damage(name, path, f"has {size:,} bytes instead of {expected.size:,}", partly=True)
    return Damage(name, path, "has another content than its hash says", partly=size == 0)


def _digests(file: BinaryIO, size: int, wanted: tuple[str, ...], tally: Tally) -> set[str]:
    """Return the content's hashes of the kinds that are `wanted`."""
    digests = []
    if any(SHA1.fullmatch(name) for name in wanted):
        digests += [hashlib.sha1(), hashlib.sha1(b"blob %d\0" % size)]
    if any(SHA256.fullmatch(name) for name in wanted):
        digests.append(hashlib.sha256())
    while piece := file.read(PIECE):
        for digest in digests:
            digest.update(piece)
        tally.check(len(piece))
    return {digest.hexdigest() for digest in digests}
