"""The Grafana dashboard and the alert rules: every query reads metrics and labels that a server exports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import promql_parser as promql
import pytest
import yaml
from prometheus_client import CollectorRegistry

from sie_server.cluster.ingress.metrics import ClusterMetrics
from support.docs.pages import DOCS, code, rows, section
from support.servers.inprocess import asking, post

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "observability"
SCHEMAS = ROOT.parent / "shared" / "schemas"  # of custom resources of Kubernetes; not part of the repository
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((FOLDER / "alerts.yaml").read_text(encoding="utf-8"))
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OF_PROMETHEUS = {"instance", "job"}  # labels of every series that it scrapes
OF_CLUSTERS = {"replica"}
Labels = dict[str, set[str]]  # of each metric, by the name of its family


@pytest.fixture(scope="module")
def exported() -> Labels:
    """Return the metrics of a server after traffic.

    The labels of metrics without a series are those of the documentation, whose names and types are tested elsewhere.
    """
    page = section((DOCS / "http-api.md").read_text(encoding="utf-8"), "Health and metrics")
    listed = {
        code(name): set(re.findall(r"`(\w+)`", rest[0])) if rest[1:] else set()
        for name, _, *rest in rows(page)
    }
    with asking({}) as client:
        pair = {"query": {"text": "rain"}, "items": [{"text": "rain falls"}]}
        post(client, "/v1/score/sie/mini-en", pair)
        post(client, "/v1/score/no/such", pair, status=404)
        broken = {"model": "sie/mini-en", "adapter": "a", "source": "no/such"}
        assert client.post("/v1/admin/adapters/load", json=broken).status_code == 502
        text = client.get("/metrics").text
    found: Labels = {name: set() for name in re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)}
    for name, labels in re.findall(r"^(\w+)\{(.*)\} ", text, re.MULTILINE):
        family = next(each for each in (name, re.sub("_(bucket|sum|count)$", "", name)) if each in found)
        found[family] |= set(re.findall(r'(\w+)="', labels)) - {"le"}
    for name, labels in found.items():
        if name in listed and labels:
            assert labels == listed[name], f"docs/http-api.md lists other labels of {name}"
    return {name: found[name] or labels for name, labels in listed.items()} | of_the_ingress()


def of_the_ingress() -> Labels:
    """Return the metrics that only the ingress of a cluster has."""
    registry = CollectorRegistry()
    ClusterMetrics(registry).reruns.labels("pool")
    samples = [
        each for family in registry.collect() for each in family.samples if each.name.endswith("_total")
    ]
    return {each.name: set(each.labels) for each in samples}


def walk(expression: promql.Expr) -> Iterator[Any]:
    seen: list[Any] = []
    promql.walk(expression, seen.append)
    yield from seen


def problems(query: str, exported: Labels) -> list[str]:
    """Return what of a query no server exports."""
    found, known = [], OF_PROMETHEUS | OF_CLUSTERS
    for part in walk(promql.parse(query.replace("$__rate_interval", "5m"))):
        if isinstance(part, promql.VectorSelector) and part.name != "up":
            family = re.sub("_(bucket|sum|count)$", "", part.name)
            family = family if family in exported else part.name
            if family not in exported:
                found.append(f"no metric {part.name}")
            known |= exported.get(family, set()) | ({"le"} if part.name.endswith("_bucket") else set())
            names = {matcher.name for matcher in part.matchers.matchers}
            found += [f"no label {name} of {family}" for name in names - known]
    return found + [f"no label {name}" for name in grouped(query) - known]


def grouped(query: str) -> set[str]:
    """Return the labels of `by` and `on` in a query."""
    names: set[str] = set()
    for part in walk(promql.parse(query.replace("$__rate_interval", "5m"))):
        if isinstance(part, promql.AggregateExpr) and part.modifier:
            names |= set(part.modifier.labels)
        elif isinstance(part, promql.BinaryExpr) and part.modifier and part.modifier.matching:
            names |= set(part.modifier.matching.labels)
    return names


def queries() -> dict[str, str]:
    panels = {f"{p['title']} {t['refId']}": t["expr"] for p in PANELS for t in p["targets"]}
    notes = {note["name"]: note["expr"] for note in DASHBOARD["annotations"]["list"]}
    return panels | notes | {rule["alert"]: rule["expr"] for rule in RULES}


@pytest.mark.parametrize("name", queries())
def test_a_query_reads_only_what_a_server_exports(name: str, exported: Labels) -> None:
    assert problems(queries()[name], exported) == []


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("rate(sie_request_total[5m])", "no metric sie_request_total"),
        ("sum by (mdl) (sie_tokens_total)", "no label mdl"),
        ('sie_stage_seconds_count{model="a"}', "no label model of sie_stage_seconds"),
        ("sum by (le) (rate(sie_batch_seconds_sum[5m]))", "no label le"),
        ("sie_queue_seconds and on (route) sie_queue_tokens", "no label route"),
    ],
)
def test_a_query_that_reads_anything_else_is_found(query: str, problem: str, exported: Labels) -> None:
    assert problem in problems(query, exported)


def test_every_metric_is_on_the_dashboard(exported: Labels) -> None:
    shown = {
        re.sub("_(bucket|sum|count)$", "", name)
        for name in re.findall(r"\bsie_\w+", " ".join(queries().values()))
    }
    assert exported.keys() - shown == set()


def test_panels_have_a_place_and_the_variables() -> None:
    places: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24 and not cells & places, panel["title"]
        places |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "instance", "replica"}
    for panel in PANELS:
        for target in panel["targets"]:
            selectors = re.findall(r"\bsie_\w+\{([^}]*)\}", target["expr"])
            assert selectors and all("$instance" in each and "$replica" in each for each in selectors)
            assert target["datasource"]["uid"] == panel["datasource"]["uid"] == "${datasource}"
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= grouped(target["expr"])


def test_alerts_have_a_text_with_labels_of_their_query() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        text = f"{rule['annotations']['summary']} {rule['annotations']['description']}"
        used = set(re.findall(r"\$labels\.(\w+)", text))
        aggregated = grouped(rule["expr"])
        assert used <= (aggregated or {"instance", "job", "model"}), rule["alert"]


def test_the_alerts_are_a_prometheus_rule() -> None:
    path = SCHEMAS / "prometheusrule_monitoring.coreos.com_v1.json"
    if not path.exists():
        pytest.skip(f"{path} with the schema of PrometheusRule does not exist")
    schema = json.loads(
        path.read_text(encoding="utf-8").replace("^(?i)", "(?i)^")
    )  # Go allows flags anywhere
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "sie"},
        "spec": ALERTS,
    }
    jsonschema.validate(resource, schema)
    resource["spec"] = {"groups": [{"name": "sie", "rules": [{"alert": "a", "expr": "up", "for": "soon"}]}]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(resource, schema)


def test_prometheus_and_grafana_find_the_files() -> None:
    prometheus = yaml.safe_load((FOLDER / "prometheus.yaml").read_text(encoding="utf-8"))
    assert all((FOLDER / name).exists() for name in prometheus["rule_files"])
    [job] = prometheus["scrape_configs"]
    assert re.search("sie", job["job_name"])  # the alert SieDown selects jobs with this name
    for name, key in (("datasource", "datasources"), ("dashboards", "providers")):
        provisioned = yaml.safe_load((FOLDER / "grafana" / f"{name}.yaml").read_text(encoding="utf-8"))
        assert provisioned["apiVersion"] == 1 and len(provisioned[key]) == 1
