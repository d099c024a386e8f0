"""The desired state of a cluster: what admins have loaded, swapped and unloaded, as a document on the shared volume.

The document is `models_dir/.sie-cluster/state-GENERATION.json`. A generation is created whole and never changed, so a
reader never sees half of one, and of two writers one fails and tries again. Replicas follow the newest generation, and
a replica that starts applies it before it takes requests.
"""

from __future__ import annotations

import logging
import os
import re
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from sie_server.errors import Conflict
from sie_server.files import TEXT_BYTES, expanded, read_bytes

log = logging.getLogger("sie_server.cluster")
FOLDER = ".sie-cluster"
NAME = re.compile(r"state-(\d{12})\.json")
KEPT = 5  # generations
# A writer that stops between reading and writing could otherwise write a generation again that has been deleted.
KEPT_S = 3600.0
SLOWEST_S = 600.0  # of a change; a slower one begins again
ATTEMPTS = 20  # against other writers


class ModelWish(Struct, frozen=True, omit_defaults=True):
    """What admins have said about one model. None: as configured."""

    source: str | None = None
    revision: str | None = None
    loaded: bool | None = None
    pinned: bool | None = None
    adapters: dict[str, str] = {}  # name → source


class State(Struct, frozen=True):
    """One generation."""

    generation: int = 0
    models: dict[str, ModelWish] = {}

    def with_model(self, name: str, wish: ModelWish) -> State:
        """Return the next generation, with another wish for one model."""
        return State(self.generation + 1, {**self.models, name: wish})


class DesiredState:
    """The documents of one cluster. Methods block on the file system."""

    def __init__(self, models_dir: str) -> None:
        self._folder = expanded(models_dir) / FOLDER

    def read(self) -> State:
        """Return the newest generation that can be read. A broken one is logged."""
        for path in self._paths():
            try:
                return _decoded(path)
            except (OSError, ValueError) as error:
                log.error("%s cannot be read, the generation before it stays in effect: %s", path, error)
        return State()

    def change(self, edit: Callable[[State], State]) -> State:
        """Write the generation that `edit` makes of the newest one, and return it.

        Raises:
            Conflict: the newest generation cannot be read, or other writers were faster each time.
        """
        for _ in range(ATTEMPTS):
            began, paths = time.monotonic(), self._paths()
            try:
                current = _decoded(paths[0]) if paths else State()
            except (OSError, ValueError) as error:
                raise Conflict(
                    f"the state of the cluster cannot be read: {error}; repair or delete {paths[0]}"
                ) from None
            changed = edit(current)
            if time.monotonic() - began < SLOWEST_S and self._create(changed):
                self._delete_old(changed)
                return changed
        raise Conflict("other admin requests are changing the state of the cluster; try again")

    def _create(self, state: State) -> bool:
        """Write a generation; False if it exists."""
        self._folder.mkdir(exist_ok=True)
        draft = self._folder / f".draft-{uuid.uuid4().hex}"
        try:
            draft.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=2))
            os.link(draft, self._path(state))  # fails if it exists, also on NFS
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        return True

    def _delete_old(self, newest: State) -> None:
        """Delete generations that are old by the clock of the volume, except the last ones."""
        with suppress(OSError):
            now = self._path(newest).stat().st_mtime
            for old in self._paths()[KEPT:]:
                if now - old.stat().st_mtime > KEPT_S:
                    old.unlink(missing_ok=True)

    def _path(self, state: State) -> Path:
        return self._folder / f"state-{state.generation:012}.json"

    def _paths(self) -> list[Path]:
        """Return the generations, the newest first."""
        if not self._folder.is_dir():
            return []
        return sorted((path for path in self._folder.iterdir() if NAME.fullmatch(path.name)), reverse=True)


def _decoded(path: Path) -> State:
    state = msgspec.json.decode(read_bytes(path, TEXT_BYTES), type=State)
    if path.name != f"state-{state.generation:012}.json":
        raise ValueError(f"it holds generation {state.generation}")
    return state
