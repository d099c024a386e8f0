"""Build what a release publishes into a folder: wheels, sdists, the npm tarball and SHA256SUMS.

.venv/bin/python scripts/build_release.py dist [--url https://HOST/OWNER/REPOSITORY] [--without-npm] [--without-kernels]

Only files that git tracks are built, in copies, so that the result depends on the commit alone. `--url` becomes the
packages' links to source, documentation and changelog; without it they have none. Needs hatchling, npm for the
tarball, and gcc on x86-64 Linux for sie-kernels. SOURCE_DATE_EPOCH sets the time in the archives (default: that of the
commit).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ("sie-sdk", "sie-server", "sie-langchain", "sie-llamaindex", "sie-haystack")
KERNELS = "sie-kernels"  # compiled: its wheel is for Linux on x86-64
NPM = "sie-ts-sdk"


def main() -> None:
    """Build everything, and print the names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--url", default="", help="address of the repository")
    parser.add_argument("--without-npm", action="store_true")
    parser.add_argument("--without-kernels", action="store_true")
    given = parser.parse_args()
    out: Path = given.out.resolve()
    if out.exists() and any(out.iterdir()):
        sys.exit(f"{out} is not empty; name another folder, so that nothing old is published")
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("SOURCE_DATE_EPOCH", git("log", "-1", "--format=%ct").strip())
    with tempfile.TemporaryDirectory() as folder:
        for name in (*PYTHON, *(() if given.without_kernels else (KERNELS,))):
            build_python(copied(name, Path(folder)), out, given.url)
        if not given.without_npm:
            build_npm(copied(NPM, Path(folder)), out, given.url)
    (out / "SHA256SUMS").write_text("".join(sums(out)), encoding="utf-8")
    print((out / "SHA256SUMS").read_text(encoding="utf-8"), end="")


def git(*words: str) -> str:
    """Return what git prints in the repository."""
    return subprocess.run(("git", *words), cwd=ROOT, check=True, capture_output=True, text=True).stdout


def copied(name: str, folder: Path) -> Path:
    """Copy the tracked files of a package; return the copy."""
    for path in git("ls-files", "-z", "--", f"packages/{name}").split("\0")[:-1]:
        target = folder / Path(path).relative_to("packages")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, target)
    return folder / name


def links(url: str) -> dict[str, str]:
    """Return the addresses that the metadata of a package names."""
    return {
        "Source": url,
        "Documentation": f"{url}/blob/HEAD/docs/README.md",
        "Changelog": f"{url}/blob/HEAD/CHANGELOG.md",
        "Issues": f"{url}/issues",
    }


def build_python(package: Path, out: Path, url: str) -> None:
    """Build the wheel and the sdist of a package."""
    if url:
        table = "".join(f'{name} = "{address}"\n' for name, address in links(url).items())
        with (package / "pyproject.toml").open("a", encoding="utf-8") as file:
            file.write(f"\n[project.urls]\n{table}")
    build = (sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel", "-d", str(out))
    done = subprocess.run(build, cwd=package, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{package.name} could not be built:\n{done.stdout}{done.stderr}")


def build_npm(package: Path, out: Path, url: str) -> None:
    """Build the tarball of the TypeScript client, with the compiler that its lock file names."""
    if url:
        path = package / "package.json"
        about = json.loads(path.read_text(encoding="utf-8"))
        about |= {"repository": {"type": "git", "url": f"git+{url}.git"}, "homepage": url}
        path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    tools = ROOT / "packages" / NPM / "node_modules"
    if tools.is_dir():
        (package / "node_modules").symlink_to(tools)
    else:
        npm(package, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
    npm(package, "pack", "--pack-destination", str(out))


def npm(package: Path, *words: str) -> None:
    """Run npm in a package. Exits with its output if it fails."""
    try:
        subprocess.run(("npm", "--silent", *words), cwd=package, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        sys.exit("npm is missing; install Node 20 or newer, or build with --without-npm")
    except subprocess.CalledProcessError as error:
        sys.exit(f"npm {' '.join(words)} failed:\n{error.stdout}{error.stderr}")


def sums(folder: Path) -> Iterator[str]:
    """Yield the lines of SHA256SUMS, in the order of the names."""
    for path in sorted(folder.iterdir()):
        yield f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"


if __name__ == "__main__":
    main()
