"""Print the requirements of the server and of chosen extras. The image installs them before the server itself, so that
a change of the code leaves their layer as it is.

    python requirements.py packages/sie-server/pyproject.toml compat,otel    # requirements, one per line
    .venv/bin/python deploy/docker/requirements.py --pin > deploy/docker/constraints.txt

`--pin` prints the installed version of each of them, for all extras, with everything that they need in turn.
"""

from __future__ import annotations

import sys
import tomllib
from importlib import metadata
from pathlib import Path

SERVER = Path(__file__).resolve().parents[2] / "packages/sie-server/pyproject.toml"
OWN = "sie-"  # packages of this repository: no index has them, and the image builds those that it needs
BUILD = ["hatchling", "uv"]  # of the build stages
CONDITIONAL = ["setuptools"]  # required by torch, from Python 3.12 on
HEADER = """\
# The versions in the image. Made in an environment with all extras by:
#     .venv/bin/python deploy/docker/requirements.py --pin > deploy/docker/constraints.txt
"""


def requirements(project: Path, extras: list[str]) -> list[str]:
    """Return the requirements of a `pyproject.toml`, those of the extras included, without our own packages.

    Raises:
        SystemExit: the project has no such extra.
    """
    table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    optional: dict[str, list[str]] = table.get("optional-dependencies", {})
    if unknown := [extra for extra in extras if extra not in optional]:
        sys.exit(f"EXTRAS: unknown extra {unknown[0]!r}; sie-server has {', '.join(sorted(optional))}")
    lines = [*table["dependencies"], *(line for extra in extras for line in optional[extra])]
    return [line for line in lines if not line.startswith(OWN)]


def pins(lines: list[str]) -> dict[str, str]:
    """Return name → version of the installed distributions that these requirements need, directly or not."""
    from packaging.requirements import Requirement  # only here: the build stage may have no packaging
    from packaging.utils import canonicalize_name

    found: dict[str, str] = {}
    waiting, seen = [Requirement(line) for line in lines], set[str]()
    while waiting:
        requirement = waiting.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        name = canonicalize_name(requirement.name)
        # without the rest of torch 2.13.0+cpu, in which the variants differ
        found[name] = metadata.version(name).partition("+")[0]
        for line in metadata.requires(name) or []:
            needed = Requirement(line)
            contexts = [{"extra": extra} for extra in ("", *requirement.extras)]
            if needed.marker is None or any(needed.marker.evaluate(context) for context in contexts):
                waiting.append(needed)
    return dict(sorted(found.items()))


def main(arguments: list[str]) -> None:
    if arguments == ["--pin"]:
        optional = tomllib.loads(SERVER.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
        lines = requirements(SERVER, [*optional])
        known = pins([*lines, *BUILD, *CONDITIONAL])
        print(HEADER + "".join(f"{name}=={version}\n" for name, version in known.items()), end="")
        return
    project, extras = Path(arguments[0]), arguments[1] if len(arguments) > 1 else ""
    print("\n".join(requirements(project, [extra.strip() for extra in extras.split(",") if extra.strip()])))


if __name__ == "__main__":
    main(sys.argv[1:])
