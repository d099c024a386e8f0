"""The chart and the server agree: the test of an installation, the metrics for scaling, and the application of Ray."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from sie_server.api.tracing.tracer import ENDPOINTS
from sie_server.config import DEFAULT_MODEL, Secret, load_config
from sie_server.serving.metrics import Metrics
from support.deploy.chart import HELM, Object, example, merged, of_kind, pods, rendered
from support.servers.loopback import Loopback, listening

KEY = "key-of-the-test-of-an-installation"


@pytest.fixture(scope="module")
def server() -> Iterator[Loopback]:
    """A server with an API key and the embedded model."""
    with listening(api_keys=Secret(f"test:infer:{KEY}"), model=(DEFAULT_MODEL,)) as loopback:
        yield loopback


def try_installation(server: Loopback, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the program of `helm test` as its pod does."""
    (pod,) = of_kind(rendered(example("cpu"), "--show-only", "templates/tests/rerank.yaml"), "Pod")
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["python", "-c"]
    assert {each["name"] for each in container["env"]} == {"URL", "KEYS", "KEY"}
    environment = {"PATH": os.environ["PATH"], "URL": server.base_url, **variables}
    return subprocess.run(
        [sys.executable, "-I", "-c", *container["args"]],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_an_installation_that_works_passes_its_test(server: Loopback) -> None:
    done = try_installation(server, KEYS="required", KEY=KEY)
    assert done.returncode == 0, done.stderr
    assert "the right text ranks first" in done.stdout


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"KEYS": "required", "KEY": "another-key-that-nobody-knows"},
            "/v1/rerank: expected status 200, got 401",
        ),
        (
            {"KEYS": "required", "KEY": KEY, "MODEL": "acme/unknown"},
            "/v1/rerank: expected status 200, got 404",
        ),
        ({"KEYS": "none"}, "/v1/rerank: expected status 200, got 401"),
    ],
)
def test_an_installation_that_does_not_work_fails_its_test(
    server: Loopback, variables: dict[str, str], message: str
) -> None:
    done = try_installation(server, **variables)
    assert done.returncode == 1
    assert message in done.stderr


def test_an_open_server_that_should_have_keys_fails_its_test() -> None:
    with listening(model=(DEFAULT_MODEL,)) as open_server:
        done = try_installation(open_server, KEYS="required", KEY=KEY)
    assert "/v1/rerank without a key: expected status 401, got 200" in done.stderr


def test_scaling_reads_metrics_that_the_server_has() -> None:
    exported = set(re.findall(r"^# TYPE (\w+) ", Metrics().text().decode(), re.MULTILINE))
    scaled = [
        each
        for name in ("cpu", "aws-gpu")
        for each in rendered(example(name))
        if "scaleTargetRef" in each.get("spec", {})
    ]
    assert {each["kind"] for each in scaled} == {"HorizontalPodAutoscaler", "ScaledObject"}
    for each in scaled:
        names = set(re.findall(r"\bsie_\w+", yaml.safe_dump(each)))
        assert names, each["kind"]
        for name in names - {"sie_device_utilisation"}:  # a rule of the Prometheus adapter
            assert name.removesuffix("_sum") in exported, name
    page = (HELM.parents[1] / "docs" / "deploy" / "kubernetes.md").read_text(encoding="utf-8")
    assert "as: sie_device_utilisation" in page
    assert "sie_device_busy_seconds_total" in page


def test_a_query_of_keda_counts_the_pods_of_one_pool_only() -> None:
    values = example("gcp-gpu")  # its pools are l4 and l4-spot
    (l4,) = [
        each for each in of_kind(rendered(values), "ScaledObject") if each["metadata"]["name"].endswith("-l4")
    ]
    (pattern,) = set(re.findall(r'pod=~"([^"]+)"', yaml.safe_dump(l4["spec"]["triggers"], width=1000)))
    assert re.fullmatch(pattern, "rerank-sie-l4-5d8c7b9f6-x2x9k")
    assert not re.fullmatch(pattern, "rerank-sie-l4-spot-5d8c7b9f6-x2x9k")


def notes(values: Object) -> str:
    """Return the text that helm prints after the installation."""
    from support.deploy import chart

    done = chart.run(
        "install", "rerank", str(chart.CHART), "--dry-run=client", "--namespace", "search", values=values
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("NOTES:")[2]


def test_the_notes_warn_about_risks() -> None:
    text = notes(merged(example("trial"), {"networkPolicy": {"enabled": False}}))
    assert "deployment/rerank-sie-cpu" in text
    for warning in (
        "keys.open is true",
        "the hub's cache has no volume",
        "networkPolicy.enabled is false",
        "may run 1 pod",
    ):
        assert warning in text
    assert "get secret" not in text
    everywhere = {"networkPolicy": {"egress": {"hub": [{"cidr": "0.0.0.0/0", "port": 443}]}}}
    text = notes(merged(example("mirror"), everywhere))
    assert "allows 0.0.0.0/0 on port 443" in text
    assert "get secret sie-keys" in text
    assert "cache has no volume" not in text


def test_the_notes_warn_about_a_policy_that_keeps_the_gateway_or_prometheus_out() -> None:
    warnings = ("networkPolicy.callers is empty", "networkPolicy.scrapers is empty")
    closed = merged(example("aws-gpu"), {"networkPolicy": {"callers": [], "scrapers": []}})
    assert [warning in notes(closed) for warning in warnings] == [True, True]
    assert [warning in notes(example("aws-gpu")) for warning in warnings] == [False, False]
    assert not any(warning in notes(example("trial")) for warning in warnings), "it has neither of them"


def test_the_cluster_gets_the_pools_of_the_chart(tmp_path: Path) -> None:
    """A pool counts pods, and the server's configuration counts replicas, of which a pod may have several."""
    pytest.importorskip("sie_server.cluster")
    values = merged(
        example("ray"),
        {
            "config": {"cluster": {"split_documents": 500}},
            "pools": [
                pool("cpu", "cpu", 3, {"memory": "9Gi", "cpu": "7500m"}),
                pool(
                    "l4", "cuda", 2, {"memory": "9Gi", "nvidia.com/gpu": 4}, accelerator="L4", models=["a/b"]
                ),
            ],
        },
    )
    arguments = serve_config(values)["applications"][0]["args"]
    assert set(arguments) == {"config"}
    read = load_config(arguments["config"], {}, None)
    cluster = msgspec.to_builtins(read.cluster)
    assert (cluster["ingress_replicas"], cluster["split_documents"]) == (4, 500)
    assert {
        name: (p["min_replicas"], p["max_replicas"], p["gpus"]) for name, p in cluster["pools"].items()
    } == {
        "l4": (8, 8, 1),
        "cpu": (3, 3, 0),
    }
    assert (cluster["pools"]["l4"]["accelerator"], list(cluster["pools"]["l4"]["models"])) == ("L4", ["a/b"])
    assert cluster["pools"]["cpu"]["cpus"] == 6  # one core is left for the other processes of the node
    assert (read.models_dir, read.api_keys_file, read.offline) == ("/models", "/etc/sie/keys/keys.toml", True)


def pool(name: str, device: str, replicas: int, limits: Object, **more: object) -> Object:
    resources = {"requests": {"cpu": 7, "memory": "9Gi"}, "limits": limits}
    return {"name": name, "device": device, "replicas": replicas, "resources": resources, **more}


def test_ray_starts_with_the_variables_that_the_server_sets() -> None:
    environment = pytest.importorskip("sie_server.cluster.environment")
    for name, template in pods(rendered(example("ray"), "--show-only", "templates/ray/rayservice.yaml")):
        own = {each["name"]: each.get("value") for each in template["spec"]["containers"][0]["env"]}
        assert environment.SETTINGS.items() <= own.items(), name


def test_traces_go_to_a_collector_only_if_configured() -> None:
    for name, endpoint in (("mirror", "http://10.20.0.9:4318"), ("cpu", None)):
        for pod, template in pods(rendered(example(name), "--show-only", "templates/plain/deployment.yaml")):
            own = {each["name"]: each.get("value") for each in template["spec"]["containers"][0]["env"]}
            assert {own[variable] for variable in ENDPOINTS if variable in own} == ({endpoint} - {None}), pod
            assert own.get("OTEL_TRACES_SAMPLER_ARG") == ("0.01" if endpoint else None), pod


def serve_config(values: Object) -> dict[str, Any]:
    (service,) = of_kind(rendered(values), "RayService")
    read: dict[str, Any] = yaml.safe_load(service["spec"]["serveConfigV2"])
    return read


def test_ray_accepts_the_application(tmp_path: Path) -> None:
    schema = pytest.importorskip("ray.serve.schema")
    app = pytest.importorskip("sie_server.cluster.app")
    keys = tmp_path / "keys.toml"
    keys.write_text('[[key]]\nname = "ops"\nkey = "0123456789abcdef"\nscopes = ["admin"]\n', encoding="utf-8")
    for name in ("ray", "ray-autoscaled"):
        deployed = schema.ServeDeploySchema.model_validate(serve_config(example(name)))
        module, function = deployed.applications[0].import_path.split(":")
        assert (module, function) == (app.__name__, app.build.__name__)
        arguments = deployed.applications[0].args
        app.build({"config": {**arguments["config"], "api_keys_file": str(keys)}})
