"""Files that others wrote: opened without blocking, and refused if they are not regular or too large to be genuine.

A models directory, an adapter or a download may hold a pipe, a device or a file of any size under any name. Everything
that reads such a file reads it through this module. YAML and JSON are also checked for two
things that their libraries accept: aliases that expand without end, and numbers that are not finite.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml

MIB = 2**20
# The largest known files of each type have a quarter of these sizes.
JSON_BYTES, TOKENIZER_BYTES, TEXT_BYTES = 8 * MIB, 128 * MIB, MIB
YAML_BYTES = 256 * 2**10  # the reader takes about 10 s per MiB
YAML_NODES = 20_000  # with every alias expanded
ENTRIES = 10_000  # of a directory


# How files begin that a failed download leaves: pointers of Git LFS, pages, and the hub's answers without the file
NOT_THE_FILE = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself; run `git lfs pull`, or download it again",
    b"<!doctype html": "is an HTML page, not the file itself; the download failed or needed a login: download it again",
    b"<html": "is an HTML page, not the file itself; the download failed or needed a login: download it again",
    b"entry not found": "is an answer of the hub (Entry not found), not the file itself; download it again",
    b"repository not found": "is an answer of the hub (Repository not found), not the file itself; download it again",
    b"invalid username or password": "is an answer of the hub (no access), not the file itself; log in and download it",
    b"access to model": "is an answer of the hub (no access), not the file itself; accept the terms and download it",
}


class UnusableFile(OSError):
    """A file is not regular, too large to be genuine, or not the file itself; or a directory has too many entries."""


def expanded(path: str | Path) -> Path:
    """Return a path with `~` replaced by the home directory; unchanged if there is no home.

    A container may run as a user that the system does not know, without the variable HOME. `Path.expanduser` raises
    then, and for `~name` of an unknown user.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111


def refusal(error: OSError) -> str:
    """Return the system's reason, for missing permissions with the user: in a container it is rarely the owner.

    `Permission denied for user 10001; owner 0, mode 600` describes the file, or the nearest directory above it.
    """
    text = error.strerror or str(error)
    if error.errno not in (errno.EACCES, errno.EPERM) or not hasattr(os, "geteuid") or " for user " in text:
        return text
    text = f"{text} for user {os.geteuid()}"
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    for place in (path, *path.parents) if path else ():
        try:
            known = place.stat()
        except OSError:
            continue
        return f"{text}; owner {known.st_uid}, mode {stat.S_IMODE(known.st_mode):o}"
    return text


@contextmanager
def _refusals() -> Iterator[None]:
    """Add the user to errors about missing permissions."""
    try:
        yield
    except PermissionError as error:
        raise PermissionError(error.errno, refusal(error), error.filename) from None


def open_regular(path: Path, most: int | None = None) -> BinaryIO:
    """Open a regular file of at most `most` bytes for reading. Symbolic links are followed.

    Raises:
        OSError: the file is missing, unreadable, not regular, too large, or the remains of a failed download.
    """
    with _refusals():
        _check(path, path.stat(), most)  # before it is opened, because opening a device may have an effect
        # a pipe that replaces the file now does not block
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        _check(path, os.fstat(descriptor), most)
        _check_start(path, descriptor)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(path: Path, most: int | None = None) -> None:
    """Check a file that a library will open by its path. Raises as `open_regular`."""
    with open_regular(path, most):
        pass


def read_bytes(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes. Raises as `open_regular`."""
    with open_regular(path, most) as file:
        # a file that grows is read up to its size at this moment
        return file.read(os.fstat(file.fileno()).st_size) or b""


def read_text(path: Path, most: int = TEXT_BYTES) -> str:
    """Return the text of a regular file in UTF-8, without the byte order mark that some editors write.

    Raises:
        OSError: as `open_regular`.
        ValueError: the content is not UTF-8.
    """
    return read_bytes(path, most).decode("utf-8-sig")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, in which every number is finite.

    Raises:
        OSError: as `open_regular`.
        ValueError: the content is not JSON, a text is not Unicode, or a number is not finite; the message names it.
        RecursionError: the content is nested too deeply.
    """
    text = read_text(path, JSON_BYTES)
    if not text.strip():
        raise ValueError("the file is empty; download it again")
    content = json.loads(text)
    if "\\ud" in text or "\\uD" in text:  # half a character, which no tokenizer and no answer can contain
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    if bad := _not_finite(content):
        raise ValueError(bad)
    return content


def _not_finite(content: Any) -> str | None:
    """Return which number is not finite. Python's JSON reader accepts NaN and Infinity, and reads 1e400 as infinity."""
    todo: list[tuple[str, Any]] = [("", content)]
    while todo:
        name, value = todo.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return f"{name or 'the content'} is {value}; expected a finite number"
        if isinstance(value, dict):
            todo += [(f"{name}.{key}" if name else str(key), part) for key, part in value.items()]
        elif isinstance(value, list):
            todo += [(f"{name}[{i}]", part) for i, part in enumerate(value)]
    return None


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        OSError: as `open_regular`.
        ValueError, yaml.YAMLError: the content is not YAML, or expands to too many values.
        RecursionError: the content is nested too deeply.
    """
    loader = yaml.SafeLoader(read_text(path, YAML_BYTES))
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded(node, {}) > YAML_NODES:
            raise ValueError(f"the file has more than {YAML_NODES} values, with its aliases expanded")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _expanded(node: yaml.Node, sizes: dict[int, float]) -> float:
    """Return how many values a node has with its aliases expanded; infinity if it contains itself."""
    if id(node) in sizes:
        return sizes[id(node)]
    sizes[id(node)] = math.inf  # while its parts are counted
    if isinstance(node, yaml.ScalarNode):
        node.value.encode("utf-8")  # an escape may yield half a character, which no answer can contain
        parts: list[yaml.Node] = []
    elif isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    else:
        parts = list(node.value)
    sizes[id(node)] = 1 + sum(_expanded(part, sizes) for part in parts)
    return sizes[id(node)]


def entries(directory: Path, most: int = ENTRIES) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a directory.

    Raises:
        OSError: the directory is unreadable, or has more than `most` entries.
    """
    with _refusals(), os.scandir(directory) as found:
        for count, entry in enumerate(found):
            if count >= most:
                raise UnusableFile(f"{directory.name} has more than {most} entries")
            yield entry


def _check(path: Path, status: os.stat_result, most: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnusableFile(f"{path.name} is {_kind(status.st_mode)}; expected a regular file")
    if most is not None and status.st_size > most:
        raise UnusableFile(
            f"{path.name} has {status.st_size / MIB:,.1f} MiB; at most {most / MIB:g} MiB are read"
        )


def _check_start(path: Path, descriptor: int) -> None:
    start = os.read(descriptor, 64)
    os.lseek(descriptor, 0, os.SEEK_SET)
    for sign, reason in NOT_THE_FILE.items():
        if start.lstrip().lower().startswith(sign):
            raise UnusableFile(f"{path.name} {reason}")


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device"
