"""Every example of the chart renders objects that Kubernetes accepts and that follow the usual policies of clusters."""

from __future__ import annotations

import copy
import functools
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from sie_server import __version__
from sie_server.api.edge.paths import LIVENESS, READINESS
from sie_server.config import load_config
from support.deploy.chart import CHART, EXAMPLES, Object, example, invalid, of_kind, pods, rendered, run

NAMES = [path.stem for path in EXAMPLES]
PLAIN = [name for name in NAMES if example(name).get("mode", "plain") == "plain"]
RAY = [name for name in NAMES if name not in PLAIN]
each_example = pytest.mark.parametrize("name", NAMES)


@functools.cache
def objects(name: str) -> list[Object]:
    return rendered(example(name))


def containers(name: str) -> list[tuple[str, Object]]:
    return [(pod, each) for pod, template in pods(objects(name)) for each in template["spec"]["containers"]]


def test_there_are_examples_of_both_modes() -> None:
    assert len(PLAIN) >= 4
    assert len(RAY) >= 2


@each_example
def test_helm_finds_nothing(name: str) -> None:
    done = run("lint", "--strict", str(CHART), values=example(name))
    assert done.returncode == 0, done.stdout + done.stderr


@each_example
def test_objects_fit_the_schemas(name: str) -> None:
    assert {(each["kind"], problem) for each in objects(name) if (problem := invalid(each))} == set()


def test_an_unknown_key_of_an_object_is_found() -> None:
    for name, kind, path in (
        ("cpu", "Deployment", ("spec", "template", "spec")),
        ("cpu", "ServiceMonitor", ("spec",)),
        ("aws-gpu", "ScaledObject", ("spec", "advanced")),
        ("ray", "RayService", ("spec", "rayClusterConfig", "headGroupSpec")),
    ):
        broken = copy.deepcopy(of_kind(objects(name), kind)[0])
        functools.reduce(lambda place, key: place[key], path, broken)["unknownKey"] = 1
        assert "unknownKey" in (invalid(broken) or ""), kind


@each_example
def test_pods_run_without_rights(name: str) -> None:
    for pod, template in pods(objects(name)):
        spec = template["spec"]
        security = spec["securityContext"]
        assert security["runAsNonRoot"], pod
        assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == 10001, pod
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, pod
        assert spec["enableServiceLinks"] is False, pod
        # the one exception is Ray's autoscaler, which calls the Kubernetes API
        scales = pod.endswith(" head") and example(name).get("autoscaling", {}).get("kind") == "ray"
        assert spec["automountServiceAccountToken"] is scales, pod
        assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}, pod
        # with the above, the Pod Security Standard "restricted"
        sources = {key for volume in spec.get("volumes", []) for key in volume.keys() - {"name"}}
        assert sources <= {"configMap", "csi", "emptyDir", "ephemeral", "persistentVolumeClaim", "secret"}, (
            pod
        )
    for pod, container in containers(name):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, pod


@each_example
def test_everything_that_is_written_has_a_volume(name: str) -> None:
    for pod, template in pods(objects(name)):
        if template["metadata"]["labels"]["app.kubernetes.io/component"] == "test":
            continue
        spec = template["spec"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for container in spec["containers"]:
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            environment = {each["name"]: each.get("value") for each in container["env"]}
            assert {"/tmp", "/dev/shm", environment["HOME"], environment["HF_HOME"]} <= set(mounts), pod
            assert {mount["name"] for mount in mounts.values()} == set(volumes), pod
            for path in ("/tmp", "/dev/shm", environment["HOME"]):
                assert volumes[mounts[path]["name"]]["emptyDir"]["sizeLimit"], (pod, path)


@each_example
def test_images_are_fixed_and_resources_limited(name: str) -> None:
    for pod, container in containers(name):
        assert re.search(r"(:(?!latest$)[\w.-]+|@sha256:[0-9a-f]{64})$", container["image"]), pod
        resources = container["resources"]
        assert {"cpu", "memory"} <= resources["requests"].keys(), pod
        assert resources["limits"]["memory"] == resources["requests"]["memory"], pod


@each_example
def test_pods_have_probes_and_time_to_stop(name: str) -> None:
    served = {path: set(group) for path, group in (("/livez", LIVENESS), ("/readyz", READINESS))}
    for pod, template in pods(objects(name)):
        if template["metadata"]["labels"]["app.kubernetes.io/component"] == "test":
            continue
        container = template["spec"]["containers"][0]
        probes = {key: container[f"{key}Probe"] for key in ("startup", "readiness", "liveness")}
        assert probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"] >= 300, pod
        sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        grace = template["spec"]["terminationGracePeriodSeconds"]
        if name in PLAIN:
            assert probes["liveness"]["httpGet"]["path"] in served["/livez"]
            assert probes["readiness"]["httpGet"]["path"] in served["/readyz"]
            drain = load_config({}, {}, None).drain_s if name != "mirror" else 90
            assert grace > sleep + drain, pod
        else:
            environment = {each["name"]: each.get("value") for each in container["env"]}
            assert grace > sleep + int(environment["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) > 150, pod


@each_example
def test_pools_of_several_pods_have_a_budget(name: str) -> None:
    budgets = of_kind(objects(name), "PodDisruptionBudget")
    selected = {budget["spec"]["selector"]["matchLabels"]["sie/pool"]: budget["spec"] for budget in budgets}
    values = example(name)
    scaled = values.get("autoscaling", {}).get("kind", "none") != "none"
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    pools = values.get("pools", defaults["pools"])
    least = {pool["name"]: pool["minReplicas" if scaled else "replicas"] for pool in pools}
    if name in RAY:
        least["ingress"] = 2
    for pool, count in least.items():
        assert (pool in selected) == (count > 1), pool
    for pool, budget in selected.items():
        if name in RAY:  # a RayCluster has no scale subresource
            assert isinstance(budget["minAvailable"], int) and 0 < budget["minAvailable"] < least[pool]
        else:
            assert budget["maxUnavailable"] == 1


@each_example
def test_selectors_find_the_pods(name: str) -> None:
    labels = [template["metadata"]["labels"] for _, template in pods(objects(name))]
    for each in objects(name):
        spec = each.get("spec", {})
        selector = {
            "Service": lambda spec=spec: spec["selector"],
            "PodDisruptionBudget": lambda spec=spec: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda spec=spec: spec["podSelector"]["matchLabels"],
            "PodMonitor": lambda spec=spec: spec["selector"]["matchLabels"],
            "Deployment": lambda spec=spec: spec["selector"]["matchLabels"],
        }.get(each["kind"])
        if selector:
            assert any(selector().items() <= found.items() for found in labels), each["kind"]
    for monitor in of_kind(objects(name), "ServiceMonitor"):
        service = of_kind(objects(name), "Service")[0]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    for spread in (t["spec"].get("topologySpreadConstraints", []) for _, t in pods(objects(name))):
        assert all(
            any(s["labelSelector"]["matchLabels"].items() <= f.items() for f in labels) for s in spread
        )


@each_example
def test_egress_goes_only_to_named_addresses(name: str) -> None:
    (policy,) = of_kind(objects(name), "NetworkPolicy")
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    named = example(name).get("networkPolicy", {}).get("egress", {})
    wanted = {(entry["cidr"], entry["port"]) for group in named.values() for entry in group}
    found = set()
    for rule in policy["spec"]["egress"]:
        assert rule.get("to"), "a rule without peers allows every address"
        for peer in rule["to"]:
            if "ipBlock" in peer:
                found |= {(peer["ipBlock"]["cidr"], port["port"]) for port in rule["ports"]}
            else:
                assert peer["podSelector"].get("matchLabels"), peer
    assert found == wanted
    if name in PLAIN and not wanted:
        assert policy["spec"]["egress"] == []


@pytest.mark.parametrize("name", PLAIN)
def test_the_server_reads_its_configuration(name: str, tmp_path: Path) -> None:
    (config,) = of_kind(objects(name), "ConfigMap")
    file = tmp_path / "config.toml"
    file.write_text(config["data"]["config.toml"], encoding="utf-8")
    read = load_config({}, {}, str(file))
    assert (read.host, read.port) == ("0.0.0.0", 8080)
    wanted = example(name).get("config", {"offline": True})
    assert {key: getattr(read, key) for key in wanted} == {
        key: tuple(value) if isinstance(value, list) else value for key, value in wanted.items()
    }
    for pod, template in pods(objects(name)):
        mounts = {mount["mountPath"] for mount in template["spec"]["containers"][0].get("volumeMounts", [])}
        if mounts:
            assert (read.models_dir in mounts) == (read.models_dir is not None), pod
            assert ("/etc/sie/keys" in mounts) == (read.api_keys_file is not None), pod


def test_every_type_of_option_survives_the_way_to_the_server(tmp_path: Path) -> None:
    wanted: dict[str, Any] = {
        "offline": True,
        "model": ['a/b=/models/ü "quoted" \\ <x> & y', "c"],
        "max_wait_s": 2.5,
        "load_wait_s": 30,
        "max_queue_tokens": 12_000_000,
        "dtype": "bfloat16",
        "root_path": "/sie",
    }
    values = {**example("trial"), "config": wanted}
    (config,) = of_kind(rendered(values, "--show-only", "templates/plain/config.yaml"), "ConfigMap")
    text = config["data"]["config.toml"]
    assert {key: value for key, value in tomllib.loads(text).items() if key in wanted} == wanted
    file = tmp_path / "config.toml"
    file.write_text(text, encoding="utf-8")
    assert load_config({}, {}, str(file)).max_queue_tokens == 12_000_000


def test_a_changed_option_restarts_the_pods() -> None:
    def checksum(config: Object) -> str:
        values = {**example("trial"), "config": config}
        (each,) = rendered(values, "--show-only", "templates/plain/deployment.yaml")
        return str(each["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

    assert checksum({"offline": True}) == checksum({"offline": True})
    assert checksum({"offline": True}) != checksum({"offline": True, "max_wait_s": 3})


def test_the_chart_has_the_version_of_the_server() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == __version__
    assert __version__.startswith(chart["version"])


def test_alerts_and_dashboard_come_from_files() -> None:
    files = {"alerts": "alerts.yaml", "dashboard": "dashboard.json"}
    folder = CHART.parents[1] / "observability"
    flags = [
        flag for key, file in files.items() for flag in ("--set-file", f"monitoring.{key}={folder / file}")
    ]
    created = rendered(example("cpu"), "--show-only", "templates/monitoring.yaml", *flags)
    assert {(each["kind"], invalid(each)) for each in created} == {
        (kind, None) for kind in ("ServiceMonitor", "PrometheusRule", "ConfigMap")
    }
    assert all(each["metadata"]["labels"]["release"] == "prometheus" for each in created)
    (rules,) = of_kind(created, "PrometheusRule")
    assert rules["spec"] == yaml.safe_load((folder / files["alerts"]).read_text(encoding="utf-8"))
    (dashboard,) = of_kind(created, "ConfigMap")
    assert json.loads(dashboard["data"]["sie.json"]) == json.loads(
        (folder / files["dashboard"]).read_text(encoding="utf-8")
    )


def test_gpu_pools_tolerate_the_taint_of_gpu_nodes() -> None:
    for name in ("aws-gpu", "gcp-gpu", "ray-autoscaled"):
        for pod, template in pods(objects(name)):
            spec = template["spec"]
            gpu = "nvidia.com/gpu" in spec["containers"][0]["resources"]["limits"]
            tolerated = any(each["key"] == "nvidia.com/gpu" for each in spec.get("tolerations", []))
            assert tolerated == gpu, pod
            assert bool(spec.get("nodeSelector")) == gpu, pod
