"""Versions, wheels, sdists and workflows. Installing them is the long form, test_installs.py."""

from __future__ import annotations

import email
import hashlib
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import set_version
import sie_sdk
from release.conftest import COMPILES, ROOT, URL

PURE = ("sie_haystack", "sie_langchain", "sie_llamaindex", "sie_sdk", "sie_server")
PACKAGES = sorted((*PURE, *(("sie_kernels",) if COMPILES else ())))
VERSION = (ROOT / "VERSION").read_text().strip()
EMBEDDED = "sie_server/embedded/mini-en"


def test_every_file_names_the_version_of_one_place() -> None:
    assert list(set_version.differences(VERSION, write=False)) == []
    assert sie_sdk.__version__ == VERSION
    named = {
        name
        for name in set_version.places()
        if name.endswith(("pyproject.toml", "package.json", "Chart.yaml"))
    }
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    packages = {
        name
        for name in listed
        if re.match(r"(packages|deploy)/.*(pyproject\.toml|package\.json|Chart\.yaml)$", name)
    }
    assert named == packages


def test_another_version_is_found_in_every_place() -> None:
    found = list(set_version.differences("7.8.9+self.1", write=False))
    assert len(found) == sum(map(len, set_version.places().values()))
    assert all(re.search(r"VERSION wants 7\.8\.9(\+self\.1)?$", line) for line in found)


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def wheel_of(dist: Path, package: str) -> Path:
    tag = "linux_x86_64" if package == "sie_kernels" else "any"
    return dist / f"{package}-{VERSION}-py3-none-{tag}.whl"


def test_the_folder_has_a_wheel_and_an_sdist_of_each_package_and_their_sums(dist: Path) -> None:
    names = [path.name for path in sorted(dist.iterdir()) if path.suffix != ".tgz"]
    built = [
        name for package in PACKAGES for name in (wheel_of(dist, package).name, f"{package}-{VERSION}.tar.gz")
    ]
    assert names == ["SHA256SUMS", *built]
    for line in (dist / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((dist / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("package", PACKAGES)
def test_wheels_have_licence_types_links_and_nothing_else_than_code(dist: Path, package: str) -> None:
    about = metadata(wheel_of(dist, package))
    assert about["License-Expression"] == "Apache-2.0" and about["Requires-Python"] == ">=3.11"
    links = dict(link.split(", ") for link in about.get_all("Project-URL", []))
    assert links["Source"] == URL and set(links) == {"Source", "Documentation", "Changelog", "Issues"}
    classifiers = about.get_all("Classifier", [])
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)} <= set(classifiers)
    assert "Typing :: Typed" in classifiers
    with zipfile.ZipFile(wheel_of(dist, package)) as archive:
        names = archive.namelist()
        [licence] = [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert any(name.endswith("py.typed") for name in names)
    assert not [name for name in names if re.search(r"(^|/)(tests?|docs|__pycache__)/|\.pyc$", name)]


@pytest.mark.parametrize("package", PURE)
def test_the_sdist_has_the_code_of_the_wheel(dist: Path, package: str) -> None:
    with tarfile.open(dist / f"{package}-{VERSION}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel_of(dist, package)) as wheel:
        code = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name.removeprefix("src/") for name in names if name.startswith("src/")} == code
    assert {"LICENSE", "README.md", "pyproject.toml"} <= names


def test_the_wheel_has_the_weights_and_says_where_they_come_from(dist: Path) -> None:
    with zipfile.ZipFile(wheel_of(dist, "sie_server")) as archive:
        weights = hashlib.sha256(archive.read(f"{EMBEDDED}/model.safetensors")).hexdigest()
        card = archive.read(f"{EMBEDDED}/README.md").decode()
        [notice] = [name for name in archive.namelist() if name.endswith("/licenses/NOTICE")]
        assert f"sha256 of model.safetensors: {weights}" in archive.read(notice).decode()
    assert "sentence-transformers/all-MiniLM-L6-v2" in card and "Apache-2.0" in card


@pytest.mark.skipif(not COMPILES, reason="needs gcc on x86-64 Linux, which builds sie-kernels")
def test_the_compiled_wheel_has_a_library_for_old_systems_and_the_sdist_its_source(
    dist: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel_of(dist, "sie_kernels")) as wheel:
        code = {name for name in wheel.namelist() if ".dist-info/" not in name}
        wheel.extract("sie_kernels/_library.so", tmp_path)
    assert code == {f"sie_kernels/{name}" for name in ("__init__.py", "_library.so", "py.typed")}
    library = (tmp_path / "sie_kernels/_library.so").read_bytes()
    needed = [tuple(map(int, found)) for found in re.findall(rb"GLIBC_(\d+)\.(\d+)", library)]
    assert max(needed) <= (2, 28), "the oldest that torch supports"
    assert b"libgomp.so.1" in library and str(ROOT).encode() not in library
    with tarfile.open(dist / f"sie_kernels-{VERSION}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "hatch_build.py",
        "LICENSE",
        *(f"src/sie_kernels/{name}.c" for name in ("attention", "int8")),
    } <= names
    assert not [name for name in names if name.endswith(".so")]


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("/nowhere/gcc", "There is no /nowhere/gcc: install it"), ("false", "false .* failed")],
)
def test_a_wheel_without_a_compiler_says_what_is_needed(compiler: str, reason: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT / "packages/sie-kernels",
        env={**os.environ, "CC": compiler},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    expected = f"sie-kernels needs Linux on x86-64 and GCC.* It is optional.* {reason if COMPILES else ''}"
    assert re.search(expected, done.stderr), done.stderr


def test_the_extra_names_the_compiled_package_of_this_version(dist: Path) -> None:
    wanted = map(Requirement, metadata(wheel_of(dist, "sie_server")).get_all("Requires-Dist", []))
    [found] = [each for each in wanted if each.name == "sie-kernels"]
    assert str(found.specifier) == f"=={VERSION}" and str(found.marker) == 'extra == "kernels"'


def test_the_framework_packages_require_exactly_this_client(dist: Path) -> None:
    for package in ("sie_haystack", "sie_langchain", "sie_llamaindex"):
        wanted = map(Requirement, metadata(wheel_of(dist, package)).get_all("Requires-Dist", []))
        assert [str(each.specifier) for each in wanted if each.name == "sie-sdk"] == [f"=={VERSION}"]


def test_a_folder_with_files_of_another_release_is_refused(dist: Path) -> None:
    script = [sys.executable, str(ROOT / "scripts/build_release.py"), str(dist)]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 1 and "is not empty; name another folder" in done.stderr


def test_every_package_has_the_licence_of_the_project() -> None:
    folders = [path.parent for path in ROOT.glob("packages/*/README.md")]
    assert len(folders) == 7
    assert {(folder / "LICENSE").read_bytes() for folder in folders} == {(ROOT / "LICENSE").read_bytes()}
