"""What callers see of the machine: only admins see paths. All others see the name of a directory, not where it is.

A caller counts as an admin if the gate would admit it to the admin routes. The log always has the whole path.
"""

from __future__ import annotations

import re
from pathlib import PurePath

from msgspec import structs
from starlette.requests import Request

from sie_server.errors import Conflict, ModelLoadFailed, ModelLoading, ResourceExhausted, SIEError
from sie_server.files import expanded
from sie_server.serving.backend import Backend
from sie_server.serving.loading.failures import copy_of
from sie_server.wire import ModelInfo

# the errors whose messages may contain paths of checkpoints
WITH_PATHS = (ModelLoadFailed, ModelLoading, ResourceExhausted, Conflict)
# an absolute path, but not a part of a URL or of a relative path
PATH = re.compile(r"""(?<![\w./:~-])~?/(?:[^\s/'"`:;,()]+/)*([^\s/'"`:;,()]+)/?""")


def model_infos(request: Request, infos: list[ModelInfo]) -> list[ModelInfo]:
    """Return the information on models that the caller may see."""
    if _is_admin(request):
        return infos
    places = _places(request.app.state.service)
    return [_without_paths(info, places) for info in infos]


def error(request: Request, known: SIEError) -> SIEError:
    """Return the error that the caller may see."""
    if not isinstance(known, WITH_PATHS) or _is_admin(request):
        return known
    seen = copy_of(known)
    seen.message = without_paths(known.message, _places(request.app.state.service))
    return seen


def without_paths(text: str, places: list[str]) -> str:
    """Return a text in which only the last part of each path is left; `places` are known directories."""
    for place in places:  # these may contain spaces, which end a path for the pattern
        text = text.replace(place, "")
    return PATH.sub(lambda found: found[1], text)


def _is_admin(request: Request) -> bool:
    answer: bool = request.app.state.gate.is_admin(request.scope)
    return answer


def _without_paths(info: ModelInfo, places: list[str]) -> ModelInfo:
    adapters = [structs.replace(one, source=_name(one.source)) for one in info.adapters]
    last_error = info.last_error and without_paths(info.last_error, places)
    source = info.source and _name(info.source)
    return structs.replace(info, source=source, adapters=adapters, last_error=last_error)


def _name(source: str) -> str:
    return PurePath(source).name if source.startswith(("/", "~", "./", "../")) else source


def _places(service: Backend) -> list[str]:
    """Return the directories of all known sources, with a final slash, the longest first."""
    config, found = service.config, {str(expanded("~"))}
    found |= {str(expanded(root).resolve()) for root in (config.models_dir, *config.source_roots) if root}
    found |= {str(PurePath(source).parent) for source in service.sources() if source.startswith("/")}
    return sorted((f"{place}/" for place in found if place not in ("/", "~")), key=len, reverse=True)
