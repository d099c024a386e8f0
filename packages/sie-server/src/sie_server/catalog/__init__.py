"""The models that the server knows (`catalog.known`), and names for directories that are no models.

The names of this package are imported when they are used: the engine needs only modules that run without msgspec.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sie_server.catalog.adapters import configured_adapters
    from sie_server.catalog.calibration import Calibration
    from sie_server.catalog.directory import ModelsDirectory, stamp_of
    from sie_server.catalog.entries import (
        EMBEDDED,
        OTHER_SCORES,
        CatalogEntry,
        ModelConfig,
        id_of,
        id_problem,
        plain_calibration,
        profile_names,
    )
    from sie_server.catalog.known import catalog, known_models, named_model, with_configured
    from sie_server.catalog.stages import CascadeEntry, Stage

__all__ = [
    "EMBEDDED",
    "OTHER_SCORES",
    "Calibration",
    "CascadeEntry",
    "CatalogEntry",
    "ModelConfig",
    "ModelsDirectory",
    "Stage",
    "catalog",
    "configured_adapters",
    "id_of",
    "id_problem",
    "known_models",
    "named_model",
    "plain_calibration",
    "profile_names",
    "stamp_of",
    "with_configured",
]
_MODULES = {
    "adapters": ("configured_adapters",),
    "calibration": ("Calibration",),
    "directory": (
        "ModelsDirectory",
        "stamp_of",
    ),
    "entries": (
        "CatalogEntry",
        "EMBEDDED",
        "ModelConfig",
        "OTHER_SCORES",
        "id_of",
        "id_problem",
        "plain_calibration",
        "profile_names",
    ),
    "known": (
        "catalog",
        "known_models",
        "named_model",
        "with_configured",
    ),
    "stages": (
        "CascadeEntry",
        "Stage",
    ),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
