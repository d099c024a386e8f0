"""The chart in deploy/helm: rendering it with helm, and checking its objects against the schemas of Kubernetes."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from support.servers.programs import missing

Object = dict[str, Any]

HELM = Path(__file__).parents[3] / "deploy" / "helm"
CHART = HELM / "sie"
EXAMPLES = sorted((HELM / "examples").glob("*.yaml"))
SCHEMAS = Path(__file__).parents[4] / "shared" / "schemas"  # of custom resources; not part of the repository
KUBERNETES = "1.37"


def run(*arguments: str, values: Object | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm with these values on its standard input."""
    return subprocess.run(
        [_helm(), *arguments, *(["--values", "-"] if values is not None else [])],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        timeout=60,
    )


@functools.cache
def _helm() -> str:
    own = Path(sys.executable).parent / "helm"  # of scripts/install_helm.py
    path = str(own) if own.exists() else shutil.which("helm")
    if path is None:
        missing("helm is not installed (scripts/install_helm.py)")
    return str(path)


def rendered(values: Object, *arguments: str, release: str = "rerank") -> list[Object]:
    """Return the objects that an installation with these values would create."""
    done = run("template", release, str(CHART), "--namespace", "search", *arguments, values=values)
    assert done.returncode == 0, done.stderr
    return loaded(done.stdout)


def loaded(text: str) -> list[Object]:
    """Return the objects in helm's output."""
    return [each for each in yaml.safe_load_all(text) if each]


def refusal(values: Object, *arguments: str) -> str:
    """Return the message with which the values are refused."""
    done = run("template", "rerank", str(CHART), *arguments, values=values)
    assert done.returncode != 0, done.stdout
    return done.stderr


def example(name: str) -> Object:
    """Return the values in deploy/helm/examples."""
    values: Object = yaml.safe_load((HELM / "examples" / f"{name}.yaml").read_text(encoding="utf-8"))
    return values


def merged(values: Object, changes: Object) -> Object:
    """Return the values with `changes`, maps merged as helm does."""
    result = dict(values)
    for key, value in changes.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return result


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    """Return the objects of these kinds."""
    return [each for each in objects if each["kind"] in kinds]


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Yield every pod or template of pods, as its name and an object with `metadata` and `spec`."""
    for each in objects:
        name = f"{each['kind']} {each['metadata']['name']}"
        if each["kind"] == "Pod":
            yield name, each
        elif each["kind"] == "Deployment":
            yield name, each["spec"]["template"]
        elif each["kind"] == "RayService":
            cluster = each["spec"]["rayClusterConfig"]
            yield f"{name} head", cluster["headGroupSpec"]["template"]
            for group in cluster["workerGroupSpecs"]:
                yield f"{name} {group['groupName']}", group["template"]


def invalid(each: Object) -> str | None:
    """Return why an object does not fit the schema of its kind.

    Skips the test without the schemas of custom resources.
    """
    import kubernetes_validate

    utils = kubernetes_validate.utils
    if not hasattr(utils.schema_contents, "cache_info"):  # it reads 2 MB of definitions for each object
        utils.schema_contents = functools.cache(utils.schema_contents)
    try:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return _invalid_custom(each)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    return None


def _invalid_custom(each: Object) -> str | None:
    file = SCHEMAS / f"{each['kind'].lower()}_{each['apiVersion'].replace('/', '_')}.json"
    if not SCHEMAS.is_dir():
        import pytest

        pytest.skip(f"{SCHEMAS} is not there, which has the schemas of custom resources")
    errors = jsonschema.Draft202012Validator(_strict(json.loads(file.read_text()))).iter_errors(each)
    found = sorted(errors, key=lambda error: list(map(str, error.path)))
    return f"{'.'.join(map(str, found[0].path))}: {found[0].message}" if found else None


def _strict(schema: Any) -> Any:
    """Return the schema with unknown keys refused, as a strict API server does, except those of metadata."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: _strict(value) for key, value in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
        if "kind" in schema["properties"]:
            result["properties"].update(metadata={"type": "object"})
    return result
