"""Damages to a model in the hub's cache, chosen by a seeded generator."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path


class Cache:
    """The folder of one repository in the cache: a complete old and new version, and the new one's commit."""

    def __init__(self, folder: Path, old: Path, new: Path) -> None:
        self.folder, self._old, self._new = folder, old, new

    def renew(self, *, update: bool = False) -> None:
        """Restore the new version, or with `update` the old one."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self._old if update else self._new, self.folder, symlinks=True)

    @property
    def commits(self) -> tuple[str, str]:
        """The commits of the old and the new version."""
        old, new = (next((cache / "snapshots").iterdir()).name for cache in (self._old, self._new))
        return old, new

    @property
    def weights(self) -> str:
        """The hash of the new version's weights."""
        return (self._new / "snapshots" / self.commits[1] / "model.safetensors").readlink().name

    @property
    def links(self) -> list[Path]:
        """The files of the snapshot."""
        return sorted(path for path in (self.folder / "snapshots").rglob("*") if path.is_symlink())

    @property
    def listing(self) -> Path:
        return next((self.folder / "trees").iterdir())

    def interrupt(self, dice: random.Random) -> str:
        """Leave the old version, and an update that was killed at any moment."""
        self.renew(update=True)
        _, commit = self.commits
        if dice.random() < 0.5:
            (self.folder / "refs/main").write_text(commit)
        if dice.random() < 0.7:
            shutil.copytree(self._new / "trees", self.folder / "trees", dirs_exist_ok=True)
        links = sorted((self._new / "snapshots" / commit).rglob("*"))
        (self.folder / "snapshots" / commit).mkdir()
        weights = next(link for link in links if link.suffix == ".safetensors")
        for link in dice.sample(links, dice.randrange(len(links))):
            if link != weights:  # the largest file comes last
                copy = self.folder / link.relative_to(self._new)
                shutil.copy2(link, copy, follow_symlinks=False)
                shutil.copy2(link.resolve(), self.folder / "blobs")
        part = self.folder / "blobs" / f"{weights.resolve().name}.0f0f0f0f.incomplete"
        part.write_bytes(weights.read_bytes()[: dice.randrange(1, weights.stat().st_size)])
        return f"interrupted, ref {(self.folder / 'refs/main').read_text() == commit}"


def damage(cache: Cache, kind: str, dice: random.Random, name: str = "") -> str:
    """Restore the cache, damage it, and return what was done; `name`: the damaged file."""
    cache.renew()
    if kind == "update":
        return cache.interrupt(dice)
    link = dice.choice([link for link in cache.links if name in ("", link.name)])
    return f"{kind} {link.name} {DAMAGES[kind](cache, link, dice)}"


def _content(
    change: Callable[[bytearray, random.Random], bytes],
) -> Callable[[Cache, Path, random.Random], object]:
    def done(_: Cache, link: Path, dice: random.Random) -> None:
        content = bytearray(link.read_bytes())
        link.resolve().write_bytes(change(content, dice))

    return done


def _flip(content: bytearray, dice: random.Random) -> bytes:
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    return content


def _hole(content: bytearray, dice: random.Random) -> bytes:
    start = dice.randrange(len(content))
    end = dice.randrange(start, len(content)) + 1
    return content[:start] + bytes(end - start) + content[end:]


def _copy(cache: Cache, link: Path, dice: random.Random) -> None:
    """Replace the link by a damaged file, as in a cache that was copied."""
    content = _flip(bytearray(link.read_bytes()), dice)
    link.unlink()
    link.write_bytes(content)


def _crossed(cache: Cache, link: Path, dice: random.Random) -> str:
    other = dice.choice([other for other in cache.links if other != link])
    target = other.readlink()
    link.unlink()
    link.symlink_to(target)
    return other.name


def _spoil_listing(cache: Cache, link: Path, dice: random.Random) -> None:
    cache.listing.write_bytes(_flip(bytearray(cache.listing.read_bytes()), dice))


def _spoil_ref(cache: Cache, link: Path, dice: random.Random) -> None:
    path = cache.folder / "refs/main"
    path.write_text(path.read_text()[: dice.randrange(40)])


DAMAGES: dict[str, Callable[[Cache, Path, random.Random], object]] = {
    "truncated": _content(lambda content, dice: content[: dice.randrange(len(content))]),
    "empty": _content(lambda content, dice: b""),
    "zeros": _content(lambda content, dice: bytes(len(content))),
    "hole": _content(_hole),
    "flipped": _content(_flip),
    "longer": _content(lambda content, dice: content + b"\0"),
    "blob missing": lambda cache, link, dice: link.resolve().unlink(),
    "link missing": lambda cache, link, dice: link.unlink(),
    "damaged copy": _copy,
    "crossed link": _crossed,
    "listing": _spoil_listing,
    "ref": _spoil_ref,
}
KINDS = [*DAMAGES, "update"]
