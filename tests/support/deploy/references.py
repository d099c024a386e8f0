"""Whether the things that a command refers to exist: files, targets, flags, variables, outputs, chart values."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import yaml

from sie_server.cli.commands import cli
from sie_server.config import ServerConfig
from support.deploy.chart import CHART
from support.deploy.shell import Command
from support.deploy.terraform import ROOT, Module, read

OURS = ("deploy/", "docs/", "scripts/", "packages/", "examples/", "tests/", "bench/", "./packages/")
PROGRAMS: dict[str, str] = tomllib.loads(Path(__file__).with_name("programs.toml").read_text())


class Page:
    """The text of a page outside of its blocks, and the files that its commands have written so far."""

    def __init__(self, prose: str) -> None:
        self.prose = prose
        self.files: set[str] = set()


def problems(command: Command, page: Page) -> Iterator[str]:
    """Yield what a command refers to and does not exist."""
    name, words = command.words[0], command.words[1:]
    if name.endswith("/sie-server") or name == "sie-server":
        yield from server(words)
    elif name in CHECKS:
        yield from CHECKS[name](words, page)
    elif "/" in name and (ROOT / name).is_file():
        if not (ROOT / name).stat().st_mode & 0o100:
            yield f"{name} is not executable"
    elif Path(name).name not in PROGRAMS["others"].split():
        yield f"unknown program: {name}"
    for before, word in pairwise(command.words):
        if name != "kubectl" or before == "-f":  # deploy/NAME is a Deployment
            yield from missing_path(word)


def missing_path(word: str) -> Iterator[str]:
    if (
        word.startswith(("deploy/docker/", "deploy/helm/"))
        and not (ROOT / "/".join(word.split("/")[:2])).exists()
    ):
        return
    path = word.split("=")[-1].split("[")[0]
    if (
        path.startswith(OURS)
        and "secrets/" not in path
        and path.rstrip("/") != "deploy/docker/secrets"
        and not (ROOT / path).exists()
    ):
        yield f"no such file: {path}"


def server(words: list[str]) -> Iterator[str]:
    """Check the words after `sie-server`."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            yield f"sie-server has no command {words[0]}"
            return
        command, words = command.commands[words[0]], words[1:]
    known = {
        "--help",
        *(name for option in command.params for name in (*option.opts, *option.secondary_opts)),
    }
    if command is cli:
        known |= {"--version"}
    for word in words:
        if re.match(r"^-[-\w]", word) and word.split("=")[0] not in known:
            yield f"{command.name} has no option {word.split('=')[0]}"


def make(words: list[str], page: Page) -> Iterator[str]:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for word in words:
        if "=" not in word and not word.startswith("-") and word not in targets:
            yield f"make has no target {word}"


def subcommand(program: str, words: list[str]) -> Iterator[str]:
    """The first word that is no flag, and no value of a flag before it, must be a known subcommand."""
    while words and words[0].startswith("-"):
        words = words[1:] if "=" in words[0] or len(words[0]) > 2 else words[2:]
    if words and words[0] not in PROGRAMS[program].split():
        yield f"{program} has no command {words[0]}"


def terraform(words: list[str], page: Page) -> Iterator[str]:
    yield from subcommand("terraform", words)
    folder = next((word.partition("=")[2] for word in words if word.startswith("-chdir=")), None)
    if folder is None:
        return
    if not list((ROOT / folder).glob("*.tf")):
        yield f"no Terraform files in {folder}"
        return
    module: Module = read(ROOT / folder)
    for before, word in pairwise(words):
        if before == "-var" and word.split("=")[0] not in module.variables:
            yield f"{folder} has no variable {word.split('=')[0]}"
        if before == "-raw" and "output" in words and not word.startswith("$") and word not in module.outputs:
            yield f"{folder} has no output {word}"


def helm(words: list[str], page: Page) -> Iterator[str]:
    yield from subcommand("helm", words)
    for before, word in pairwise(words):
        file = before in ("-f", "--values") and not word.startswith("deploy/")
        if file and word not in page.files and word not in page.prose:
            yield f"the page does not say where {word} comes from"
        if before.startswith("--set") and "deploy/helm/sie" in words:
            yield from chart_value(word.partition("=")[0])
            if before == "--set-file":
                yield from missing_path(word)


@cache
def chart_defaults() -> Any:
    return yaml.safe_load((CHART / "values.yaml").read_text())


def chart_value(key: str) -> Iterator[str]:
    """Check a path of the chart's values such as `image.tag`. The keys of `config` are options of the server."""
    node: Any = chart_defaults()
    parts = key.split(".")
    for i, part in enumerate(parts):
        name, _, index = part.partition("[")
        if parts[:i] == ["config"]:
            if name not in ServerConfig.__struct_fields__:
                yield f"the server has no option {name}"
            return
        if not isinstance(node, dict) or name not in node:
            if not (isinstance(node, dict) and not node):  # an empty map takes any key
                yield f"the chart has no value {key}"
            return
        node = node[name]
        if index:
            node = node[0]


def kubectl(words: list[str], page: Page) -> Iterator[str]:
    yield from subcommand("kubectl", words)


def containers(words: list[str], page: Page) -> Iterator[str]:
    yield from subcommand("docker", words)
    if words[0] == "build":
        file = next((after for before, after in pairwise(words) if before == "-f"), "Dockerfile")
        if (ROOT / file).exists():
            arguments = set(re.findall(r"^ARG (\w+)", (ROOT / file).read_text(), re.MULTILINE))
            for before, word in pairwise(words):
                if before == "--build-arg" and word.split("=")[0] not in arguments:
                    yield f"{file} has no argument {word.split('=')[0]}"
    if words[0] in ("run", "exec"):
        image = next((i for i, word in enumerate(words) if re.search(r"(^|/)sie-server(:|$)", word)), None)
        after = words[image + 1 :] if image is not None else []
        if after and "--entrypoint" not in words:
            yield from server(after)


def ray(words: list[str], page: Page) -> Iterator[str]:
    yield from subcommand("ray", words)


def python(words: list[str], page: Page) -> Iterator[str]:
    if words[:1] == ["-m"] and words[1].split(".")[0] in ("bench", "sie_server"):
        base = ROOT if words[1].startswith("bench") else ROOT / "packages/sie-server/src"
        path = base / words[1].replace(".", "/")
        if not path.is_dir() and not path.with_suffix(".py").exists():
            yield f"no module {words[1]}"


CHECKS: dict[str, Callable[[list[str], Page], Iterator[str]]] = {
    "make": make,
    "terraform": terraform,
    "helm": helm,
    "kubectl": kubectl,
    "docker": containers,
    "podman": containers,
    "ray": ray,
    "systemctl": lambda words, page: subcommand("systemctl", words),
    "python": python,
    "python3": python,
}
