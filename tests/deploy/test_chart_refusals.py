"""Values that cannot work stop the installation with messages that name the keys, all of them at once."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from sie_server.config import ServerConfig
from support.deploy.chart import Object, example, merged, refusal, rendered

GPU = {"requests": {"cpu": 4, "memory": "8Gi"}, "limits": {"memory": "8Gi", "nvidia.com/gpu": 1}}
CPU = {"requests": {"cpu": 4, "memory": "8Gi"}, "limits": {"memory": "8Gi"}}


def pool(**changes: object) -> Object:
    return {"name": "a", "device": "cpu", "replicas": 1, "resources": CPU, **changes}


# Values, and the paths that the schema finds in them.
SCHEMA: list[tuple[Object, list[str]]] = [
    (
        {
            "image": {"tagg": "x", "digest": "sha256:abc"},
            "mode": "kserve",
            "config": {"ofline": True, "dtype": "int4", "max_wait_s": 0, "model": "a/b", "drain_s": "60"},
            "autoscaling": {"hpa": {}, "keda": {}},
            "pools": [
                pool(gpus=1),
                pool(name="A_1"),
                pool(replicas=0),
                pool(device="tpu"),
                pool(resources={**CPU, "limits": {"cpu": 4}}),
                pool(resources={**CPU, "requests": {"cpu": 1, "memory": "8 GB"}}),
                {"name": "a", "replicas": 1, "resources": CPU},
            ],
            "cache": {"volume": {"hostPath": {"path": "/"}}, "emptyDirSize": True},
            "models": {"volume": {"nfs": {}, "csi": {}}},
            "keys": {"existingSecret": "My Secret"},
            "rollout": {"preStopS": "10s", "startupS": 0},
            "ray": {"graceS": 30, "version": "2.61.0", "ingress": {"replicas": 1}},
            "networkPolicies": {},
        },
        [
            *("", "/image", "/image/digest", "/mode", "/config", "/config/dtype", "/config/max_wait_s"),
            *(
                "/config/model",
                "/config/drain_s",
                "/autoscaling",
                "/pools/0",
                "/pools/1/name",
                "/pools/2/replicas",
            ),
            *(
                "/pools/3/device",
                "/pools/4/resources/limits",
                "/pools/5/resources/requests/memory",
                "/pools/6",
            ),
            *(
                "/cache/volume",
                "/cache/emptyDirSize",
                "/models/volume",
                "/keys/existingSecret",
                "/rollout/preStopS",
            ),
            *("/rollout/startupS", "/ray/graceS", "/ray/version", "/ray/ingress/replicas"),
        ],
    ),
    (
        {
            "autoscaling": {"kind": "both"},
            "pools": [],
            "networkPolicy": {
                "egress": {"hub": [{"cidr": "hub.example.com", "port": 443}, {"cidr": "10.0.0.1/32"}]},
                "dns": [],
                "callers": [{}],
            },
            "tests": {"keySecret": {"name": "a"}},
            "tracing": {"ratio": 2},
        },
        [
            *("/autoscaling/kind", "/pools", "/networkPolicy/egress/hub/0/cidr"),
            *(
                "/networkPolicy/egress/hub/1",
                "/networkPolicy/dns",
                "/networkPolicy/callers/0",
                "/tests/keySecret",
                "/tracing/ratio",
            ),
        ],
    ),
]


@pytest.mark.parametrize(("changes", "paths"), SCHEMA)
def test_the_schema_names_every_wrong_key(changes: Object, paths: list[str]) -> None:
    message = refusal(merged(example("trial"), changes))
    found = re.findall(r"^ *- at '([^']*)': (?!validation failed)", message, re.MULTILINE)
    assert sorted(set(found)) == sorted(paths)


# An example of deploy/helm/examples, changes of it, and the beginnings of the findings.
CONTRADICTIONS: list[tuple[str, Object, list[str]]] = [
    (
        "trial",
        {
            "image": {"repository": "", "tag": ""},
            "keys": {"open": False},
            "nameOverride": "a" * 43,
            "pools": [
                pool(),
                pool(device="cuda", resources=GPU),
                pool(name="b", device="cuda"),
                pool(
                    name="c",
                    device="cuda",
                    resources={**GPU, "limits": {"memory": "8Gi", "nvidia.com/gpu": 0}},
                ),
                pool(name="d", resources=GPU),
                pool(
                    name="e",
                    device="cuda",
                    resources={**GPU, "limits": {"memory": "8Gi", "nvidia.com/gpu": 4}},
                ),
                {"name": "f", "device": "cpu", "resources": CPU},
                pool(name="g", models=["a/b"], accelerator="L4"),
                pool(name="h", resources={**CPU, "limits": {"memory": "8Gi", "nvidia.com/mig-1g.10gb": 1}}),
            ],
            "autoscaling": {"keda": {"serverAddress": "http://prometheus"}},
            "rollout": {"maxSurge": 0},
            "config": {"offline": False},
            "ingress": {"enabled": True, "host": "a.example.com"},
            "tracing": {"endpoint": "http://collector:4318"},
        },
        [
            "image.repository is empty",
            "image.tag and image.digest are empty",
            "keys.existingSecret is empty: create a Secret",
            "nameOverride: the name",
            "pools[1] (a): the name is already that of another pool",
            "pools[2] (b): device is cuda, but resources.limits has no nvidia.com/gpu",
            "pools[3] (c): device is cuda, but resources.limits has no nvidia.com/gpu",
            "pools[4] (d): device is cpu, but resources.limits has a GPU",
            "pools[5] (e): resources.limits has 4 GPUs, but a server uses one",
            "pools[6] (f): autoscaling.kind is none, so replicas is required",
            "pools[7] (g): accelerator needs mode: ray",
            "pools[7] (g): models needs mode: ray",
            "pools[8] (h): device is cpu, but resources.limits has a GPU",
            "config.offline is false, but networkPolicy.egress.hub names no CIDR",
            "tracing.endpoint is set, but networkPolicy.egress.telemetry names no CIDR",
            "ingress.className is empty",
            "rollout.maxSurge and rollout.maxUnavailable are both 0",
        ],
    ),
    (
        "trial",
        {
            "image": {"tag": "latest"},
            "keys": {"existingSecret": "sie-keys"},
            "autoscaling": {"kind": "hpa"},
            "pools": [
                pool(minReplicas=5, maxReplicas=2),
                pool(name="b"),
                pool(name="c", minReplicas=0, maxReplicas=2),
            ],
            "cache": {"volume": {"nfs": {"server": "a", "path": "/"}}, "claim": {"size": "1Gi"}},
            "models": {"claim": {"size": "1Gi", "accessMode": "ReadWriteOnce"}},
            "networkPolicy": {
                "egress": {key: [{"cidr": "0.0.0.0/0", "port": 443}] for key in ("hub", "telemetry")}
            },
            "hub": {"endpoint": "https://hub.example.com"},
        },
        [
            "image.tag is latest, which names another image after each build",
            "keys.open is true, but keys.existingSecret is set",
            "pools[0] (a): minReplicas (5) is larger than maxReplicas (2)",
            "pools[1] (b): autoscaling.kind is hpa, so minReplicas and maxReplicas are required",
            "pools[2] (c): minReplicas is 0, but no pod is left that exports the HPA's metrics",
            "cache: volume and claim are both set",
            "models.claim.accessMode is ReadWriteOnce: a rolling update mounts the claim in two pods",
            "networkPolicy.egress.hub names CIDRs, but config.offline is true",
            "hub.endpoint or hub.tokenSecret is set, but config.offline is true",
            "networkPolicy.egress.telemetry names CIDRs, but tracing.endpoint is empty",
        ],
    ),
    (
        "trial",
        {
            "autoscaling": {"kind": "keda"},
            "pools": [pool(minReplicas=0, maxReplicas=2)],
            "hub": {"tokenSecret": {"name": "hub", "key": "token"}},
        },
        [
            "pools[0] (a): minReplicas is 0, so autoscaling.keda.wakeQuery must count the requests",
            "hub.endpoint or hub.tokenSecret is set",
            "autoscaling.keda.serverAddress is empty",
        ],
    ),
    (
        "trial",
        {"autoscaling": {"kind": "ray"}, "pools": [pool(minReplicas=1, maxReplicas=2)]},
        ["autoscaling.kind is ray, but mode is plain"],
    ),
    (
        "ray",
        {
            "keys": {"existingSecret": "", "open": True},
            "nameOverride": "a" * 48,
            "models": {"claim": None, "readOnly": True},
            "pools": [
                pool(name="head", resources={**CPU, "requests": {"cpu": 8, "memory": "4Gi"}}),
                pool(name="ingress", resources={**CPU, "requests": {"cpu": "8500m", "memory": "4Gi"}}),
                pool(resources={**CPU, "requests": {"cpu": "2500m", "memory": "4Gi"}}),
            ],
            "networkPolicy": {"egress": {"redis": []}},
            "ray": {"redis": {"address": ""}},
            "config": {"drain_s": 230},
        },
        [
            "nameOverride: the name",
            "pools[0] (head): the name is already",
            "pools[1] (ingress): the name is already",
            "pools[2] (a): a replica of this pool would fit an ingress pod",
            "models: mode is ray, so a volume or claim",
            "models.readOnly is true, but with mode: ray",
            "ray.redis.address is empty",
            "pools: the order is head, ingress, a, but KubeRay sorts pools by name",
            "ray.graceS is 240, but pods need more than rollout.preStopS and config.drain_s (240)",
            "keys.open is true, but with mode: ray",
            "networkPolicy.egress.redis names no CIDR",
        ],
    ),
    (
        "ray",
        {
            "autoscaling": {"kind": "ray"},
            "models": {"claim": {"accessMode": "ReadOnlyMany"}},
            "pools": [pool(device="cuda", resources=GPU, minReplicas=1, maxReplicas=2)],
        },
        ["models.claim.accessMode is ReadOnlyMany", "networkPolicy.egress.kubernetesApi names no CIDR"],
    ),
    (
        "ray",
        {
            "autoscaling": {"kind": "hpa"},
            "pools": [pool(device="cuda", resources=GPU, minReplicas=1, maxReplicas=2)],
        },
        ["autoscaling.kind is hpa, but with mode: ray Ray itself scales"],
    ),
]


@pytest.mark.parametrize(("base", "changes", "findings"), CONTRADICTIONS)
def test_contradictions_are_refused(base: str, changes: Object, findings: list[str]) -> None:
    found = re.findall(r"^- (.*)$", refusal(merged(example(base), changes)), re.MULTILINE)
    assert len(found) == len(findings), found
    for line, finding in zip(found, findings, strict=True):
        assert line.startswith(finding)


def test_every_option_of_the_server_is_a_value_except_those_that_the_chart_sets() -> None:
    own = {
        "host",
        "port",
        "device",
        "models_dir",
        "api_keys",
        "api_keys_file",
        "ray",
        "ray_address",
        "cluster",
    }
    fields = msgspec.structs.fields(ServerConfig)
    refused = refusal(
        merged(
            example("trial"),
            {"config": {field.name: "x" for field in fields if field.name in own - {"cluster"}}},
        )
    )
    (line,) = re.findall(r"^- at '/config': .*$", refused, re.MULTILINE)
    assert set(re.findall(r"'(\w+)'", line)) == own & {field.name for field in fields} - {"cluster"}
    defaults: dict[str, Any] = msgspec.to_builtins(
        {field.name: field.default for field in fields if field.name not in own and field.default is not None}
    )
    assert rendered(merged(example("trial"), {"config": {**defaults, "offline": True}}))
