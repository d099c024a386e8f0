"""docs/deploy: no command of a page refers to something that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from sie_server.config import ServerConfig
from support.deploy.chart import example, invalid, merged, of_kind, rendered
from support.deploy.references import chart_defaults, chart_value
from support.deploy.terraform import ROOT, TERRAFORM, read
from support.docs.commands import SPAN, faults

PAGES = sorted((ROOT / "docs" / "deploy").glob("*.md"))
CLIENT = {"SIE_API_KEY", "SIE_ADMIN_KEY", "SIE_BASE_URL", "SIE_CONFIG"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_command_refers_to_things_that_exist(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_variable_of_the_server_exists(path: Path) -> None:
    options = {f"SIE_{name.upper()}" for name in ServerConfig.__struct_fields__} | CLIENT
    elsewhere = "\n".join(file.read_text() for file in (ROOT / "deploy").rglob("*.yaml"))
    named = set(re.findall(r"\bSIE_[A-Z][A-Z0-9_]*\b", path.read_text(encoding="utf-8")))
    assert {name for name in named - options if name not in elsewhere} == set()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_chart_value_in_the_text_exists(path: Path) -> None:
    spans = SPAN.findall(path.read_text(encoding="utf-8"))
    keys = {
        span.split("=")[0].split(":")[0]
        for span in spans
        if re.fullmatch(r"[a-z]\w*(\.[a-z]\w*)+([=:].*)?", span)
    }
    known = {key for key in keys if key.split(".")[0] in chart_defaults()}
    assert [problem for key in sorted(known) for problem in chart_value(key)] == []


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_every_terraform_variable_in_the_text_exists(cloud: str) -> None:
    text = (ROOT / "docs" / "deploy" / f"{cloud}.md").read_text(encoding="utf-8")
    variables = (TERRAFORM / cloud / "variables.tf").read_text()
    named = re.findall(r"`([a-z]+_[a-z_]+)(?: = [^`]+)?`", text)
    assert len(named) > 10
    known = set(read(TERRAFORM / cloud).variables) | set(read(TERRAFORM / cloud).outputs)
    known |= set(re.findall(r"^ +(\w+) +=", variables, re.MULTILINE))  # of a pool
    strangers = {"models_dir", "setup_commands"}
    assert set(named) - known - strangers == set()


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_the_chart_admits_the_load_balancer_with_the_values_of_the_page(cloud: str) -> None:
    text = (ROOT / "docs" / "deploy" / f"{cloud}.md").read_text(encoding="utf-8")
    [written] = re.findall(r"^cat > callers\.yaml <<END\n(.*?)\nEND$", text, re.MULTILINE | re.DOTALL)
    values = yaml.safe_load(written)
    created = rendered(merged(example(f"{cloud}-gpu"), values))
    assert [each for each in created if invalid(each)] == []
    (policy,) = of_kind(created, "NetworkPolicy")
    peers = policy["spec"]["ingress"][0]["from"]
    assert all(caller in peers for caller in values["networkPolicy"]["callers"])
    assert of_kind(created, "Ingress")[0]["spec"]["ingressClassName"] == values["ingress"]["className"]


BROKEN = """
```bash
sie-server serve --prot 8080
sie-server admin swop a b
make demmo ARGS="-x"
terraform -chdir=deploy/terraform/aws/examples/scale-to-zero output -raw bucket
terraform -chdir=deploy/terraform/aws/examples/scale-to-zero launch -var 'zone=["a"]'
terraform -chdir=deploy/terraform/azure init
helm setup sie deploy/helm/sie -f values.yaml
kubectl launch -f - | frobnicate
ray up deploy/ray/azure.yaml
docker run sie-server:1.0.0 serve --ofline
python -m bench.nothing
echo "$TAG" "$(make nothing)"
deploy/docker/missing --help
```
Then `kubectl rolout status deployment` and `sie-server models --al`.
"""


def test_the_check_can_fail() -> None:
    assert [fault.split(": ", 1)[1] for fault in faults(BROKEN)] == [
        "$TAG is not set on this page",
        "serve has no option --prot",
        "sie-server has no command swop",
        "make has no target demmo",
        "deploy/terraform/aws/examples/scale-to-zero has no output bucket",
        "terraform has no command launch",
        "deploy/terraform/aws/examples/scale-to-zero has no variable zone",
        "no Terraform files in deploy/terraform/azure",
        "no such file: deploy/terraform/azure",
        "helm has no command setup",
        "the page does not say where values.yaml comes from",
        "kubectl has no command launch",
        "unknown program: frobnicate",
        "no such file: deploy/ray/azure.yaml",
        "serve has no option --ofline",
        "no module bench.nothing",
        "make has no target nothing",
        "unknown program: deploy/docker/missing",
        "kubectl has no command rolout",
        "models has no option --al",
    ]


def test_the_check_of_chart_values_can_fail() -> None:
    assert (
        list(chart_value("image.tag"))
        == list(chart_value("config.model"))
        == list(chart_value("pools[0].resources.limits.cpu"))
        == []
    )
    assert list(chart_value("image.tags")) == ["the chart has no value image.tags"]
    assert list(chart_value("config.mood")) == ["the server has no option mood"]
