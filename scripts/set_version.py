"""Write the version in the file VERSION to every other file that names it.

python scripts/set_version.py 1.1.0+self.1   # set another version
python scripts/set_version.py                # write the version of VERSION everywhere
python scripts/set_version.py --check        # exit with 1 if a file names another one

Python packages and headers have the whole version. The label after `+` keeps them apart from packages of the same names
on public indexes. npm, Helm and tags of images have the version without the label, which they do not allow.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SEMANTIC = r"\d+\.\d+\.\d+"
WHOLE = rf"{SEMANTIC}(?:(?:a|b|rc)\d+)?(?:\+[a-z0-9.]+)?"
PYTHON = ("sdk", "server", "langchain", "llamaindex", "haystack")
MODULES = (
    "sie-sdk/src/sie_sdk/version.py",
    "sie-server/src/sie_server/__init__.py",
    "sie-langchain/src/sie_langchain/version.py",
    "sie-llamaindex/src/sie_llamaindex/version.py",
    "sie-haystack/src/haystack_integrations/common/sie/version.py",
)

Places = dict[str, list[tuple[str, bool]]]  # file → (pattern with one group for the version, whole)


def places() -> Places:
    """Return the pattern of each place that names the version, and whether it has the label."""
    found: Places = {}
    for name in (*PYTHON, "kernels"):
        found[f"packages/sie-{name}/pyproject.toml"] = [(rf'^version = "({WHOLE})"$', True)]
    for name in PYTHON[2:]:
        found[f"packages/sie-{name}/pyproject.toml"].append((rf'"sie-sdk==({WHOLE})"', True))
    found["packages/sie-server/pyproject.toml"].append((rf'"sie-kernels==({WHOLE})"', True))
    for name in MODULES:
        found[f"packages/{name}"] = [(rf'^__version__ = "({WHOLE})"$', True)]
    found["packages/sie-ts-sdk/src/version.ts"] = [(rf'^export const VERSION = "({WHOLE})";$', False)]
    found["packages/sie-ts-sdk/package.json"] = [(rf'^  "version": "({WHOLE})",$', False)]
    found["packages/sie-ts-sdk/package-lock.json"] = [
        (rf'\A{{\n  "name": "[^"]+",\n  "version": "({WHOLE})",$', False),
        (rf'^    "": {{\n      "name": "[^"]+",\n      "version": "({WHOLE})",$', False),
    ]
    found["deploy/helm/sie/Chart.yaml"] = [
        (rf"^version: ({WHOLE})$", False),
        (rf'^appVersion: "({WHOLE})"$', True),
    ]
    found["deploy/docker/Dockerfile"] = [(rf"^ARG VERSION=({WHOLE})$", True)]
    found["docs/http-api.md"] = [(rf"^x-sie-server-version: ({WHOLE})$", True)]
    return found


def differences(version: str, *, write: bool) -> Iterator[str]:
    """Yield the places with another version, or without one; write `version` there if `write`."""
    for name, patterns in places().items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        for pattern, whole in patterns:
            wanted = version if whole else version.partition("+")[0]
            if (found := re.search(pattern, text, re.MULTILINE)) is None:
                yield f"{name}: no version where {pattern} expects it"
                continue
            if found[1] != wanted:
                yield f"{name}: {found[1]}, and VERSION wants {wanted}"
                start, end = found.span(1)
                text = text[:start] + wanted + text[end:]
        if write:
            path.write_text(text, encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Return 0 if all places agree or are written, 1 if not."""
    check = "--check" in arguments
    given = [each for each in arguments if each != "--check"]
    if given and not re.fullmatch(WHOLE, given[0]):
        print(f"{given[0]!r} is no version; expected for example 1.1.0+self.1")
        return 2
    if given:
        (ROOT / "VERSION").write_text(f"{given[0]}\n", encoding="utf-8")
    version = (ROOT / "VERSION").read_text(encoding="utf-8").strip()
    found = list(differences(version, write=not check))
    print("\n".join(found) or f"all files name {version}")
    broken = any("no version" in each for each in found)
    return int(broken or (check and bool(found)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
