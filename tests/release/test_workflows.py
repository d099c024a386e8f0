"""The files for GitHub follow its schemas, and name scripts and targets that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from release.conftest import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
MAKE = (ROOT / "Makefile").read_text()


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", WORKFLOWS),
        ("dependabot", [ROOT / ".github/dependabot.yml"]),
        ("github-issue-forms", [path for path in FORMS if path.name != "config.yml"]),
        ("github-issue-config", [ROOT / ".github/ISSUE_TEMPLATE/config.yml"]),
    ],
)
def test_files_follow_the_schema_of_github(schema: str, files: list[Path]) -> None:
    assert files
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_jobs_have_few_permissions_a_time_limit_and_scripts_that_exist(path: Path) -> None:
    text = path.read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 120
        for step in job["steps"]:
            for target in re.findall(r"\bmake ([a-z-]+)", step.get("run", "")):
                assert re.search(rf"^{target}:", MAKE, re.MULTILINE), target
    for script in re.findall(r"(?<![\w./-])(?:scripts|deploy|\.ci)/[\w/.-]+", text):
        assert (ROOT / script).exists(), script


def test_releases_start_with_a_tag_of_the_version_and_are_published_where_the_operator_says() -> None:
    text = (ROOT / ".github/workflows/release.yml").read_text()
    workflow = yaml.safe_load(text)
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML reads the key `on` as true
    jobs = workflow["jobs"]
    assert {"test", "build", "image", "publish"} == set(jobs)
    assert set(jobs["publish"]["needs"]) == {"build", "image"} and jobs["build"]["needs"] == "test"
    # nothing is sent to a public index, whose packages of these names belong to others
    assert not re.search(r"https?://|repository-url|pypi-publish", text)
    for name in ("PYTHON_INDEX", "NPM_REGISTRY", "IMAGE_REPOSITORY"):
        assert f"vars.{name}" in text


def test_owners_and_the_security_page_exist() -> None:
    assert re.search(r"^\* +@\S+", (ROOT / ".github/CODEOWNERS").read_text(), re.MULTILINE)
    assert "private" in (ROOT / "SECURITY.md").read_text()
