"""deploy/terraform. Nothing here reaches a cloud: Terraform formats, parses, checks variables and computes outputs, and
the arguments of modules and resources are compared with those that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.deploy.chart import invalid, merged, of_kind, rendered
from support.deploy.terraform import (
    META,
    ROOT,
    TERRAFORM,
    Body,
    Module,
    badly_formatted,
    fits,
    interface,
    modules,
    outputs,
    plan,
    read,
)

RESOURCES = json.loads((ROOT / "tests/support/deploy/resources.json").read_text())
NAMES = [str(path.relative_to(TERRAFORM)) for path in modules()]


@pytest.fixture(params=NAMES)
def module(request: pytest.FixtureRequest) -> Module:
    return read(TERRAFORM / request.param)


def test_every_file_is_formatted() -> None:
    assert badly_formatted(TERRAFORM) == ""


def test_the_formatting_check_can_fail(tmp_path: Path) -> None:
    (tmp_path / "main.tf").write_text('variable  "x" {\ntype=string\n}\n')
    assert badly_formatted(tmp_path) == "main.tf\n"
    (tmp_path / "main.tf").write_text('variable "x" {')
    assert "Unclosed configuration block" in badly_formatted(tmp_path)


def test_arguments_of_modules_exist_and_fit(module: Module) -> None:
    for call in module.calls:
        variables, _ = interface(module, call)
        assert wrong_arguments(module.calls[call], variables) == []


def wrong_arguments(body: Body, variables: dict[str, Body]) -> list[str]:
    given = {name: value for name, value in body.items() if name not in META}
    unknown = [f"unknown: {name}" for name in given.keys() - variables.keys()]
    missing = [
        f"missing: {name}" for name, item in variables.items() if item["required"] and name not in given
    ]
    kinds = [
        f"type of {name}"
        for name, value in given.items()
        if name in variables and not fits(value, variables[name]["type"])
    ]
    return unknown + missing + kinds


def test_the_check_of_arguments_can_fail() -> None:
    variables = {
        "name": {"type": "string", "required": True},
        "sizes": {"type": "${list(number)}", "required": False},
    }
    assert wrong_arguments({"source": "x", "sizes": "3", "nam": "a"}, variables) == [
        "unknown: nam",
        "missing: name",
        "type of sizes",
    ]
    assert wrong_arguments({"source": "x", "sizes": [3], "name": "${var.x}"}, variables) == []


def test_everything_referred_to_exists_and_everything_declared_is_used(module: Module) -> None:
    called = {call: interface(module, call)[1] for call in module.calls}
    assert dangling(module, called) == []
    used = set(re.findall(r"\bvar\.(\w+)", module.text))
    assert set(module.variables) - used == set(), "a variable without an effect"
    assert module.locals - set(re.findall(r"\blocal\.(\w+)", module.text)) == set(), "a local without a use"


def dangling(module: Module, called: dict[str, set[str]]) -> list[str]:
    """Return the references of a module to something that it does not have."""
    text = module.text
    found = [f"var.{name}" for name in re.findall(r"\bvar\.(\w+)", text) if name not in module.variables]
    found += [f"local.{name}" for name in re.findall(r"\blocal\.(\w+)", text) if name not in module.locals]
    for call, output in re.findall(r"(?<![\w.])module\.(\w+)\.(\w+)", text):
        if output not in called.get(call, ()):
            found.append(f"module.{call}.{output}")
    for kind, name, attribute in re.findall(
        r"\b((?:data\.)?(?:aws|google)_\w+)\.(\w+)(?:\[[^]\[]*(?:\[[^]]*\])?[^]\[]*\])?(?:\.(\w+))?", text
    ):
        if (kind, name) not in module.resources or (
            attribute and attribute not in RESOURCES[kind]["attributes"]
        ):
            found.append(f"{kind}.{name}.{attribute}")
    return found


def test_the_check_of_references_can_fail(tmp_path: Path) -> None:
    (tmp_path / "main.tf").write_text(
        'resource "aws_vpc" "this" {\n  cidr_block = var.cidr\n}\n'
        'output "x" {\n  value = [aws_vpc.this.idd, aws_vpc.that.id, module.a.b, local.c, aws_vpc.this.arn]\n}\n'
    )
    found = dangling(read(tmp_path), {"a": {"c"}})
    assert found == ["var.cidr", "local.c", "module.a.b", "aws_vpc.this.idd", "aws_vpc.that.id"]


def test_arguments_of_resources_exist(module: Module) -> None:
    for (kind, name), body in module.resources.items():
        assert kind in RESOURCES, f"look up the arguments of {kind} and add them to resources.json"
        assert wrong_resource(body, RESOURCES[kind]["arguments"]) == [], f"{kind}.{name}"


def wrong_resource(body: Body, known: Body) -> list[str]:
    arguments = {name.removesuffix("!"): inner for name, inner in known.items()}
    blocks = body.get("dynamic", [])
    given = body | {name: [inner["content"][0]] for block in blocks for name, inner in block.items()}
    given = {name: value for name, value in given.items() if name not in META and name != "dynamic"}
    found = [f"unknown: {name}" for name in given.keys() - arguments.keys()]
    found += [f"missing: {name[:-1]}" for name in known if name.endswith("!") and name[:-1] not in given]
    for name in given.keys() & arguments.keys():
        if arguments[name] and isinstance(given[name], list):
            found += [
                f"{name}.{wrong}" for inner in given[name] for wrong in wrong_resource(inner, arguments[name])
            ]
    return found


def test_the_check_of_resources_can_fail() -> None:
    known = RESOURCES["aws_s3_bucket_versioning"]["arguments"]
    bad = {"bucket": "b", "bukket": "b", "versioning_configuration": [{"mfa": "x"}]}
    assert wrong_resource(bad, known) == [
        "unknown: bukket",
        "versioning_configuration.unknown: mfa",
        "versioning_configuration.missing: status",
    ]


AWS: Body = {"zones": ["eu-central-1a", "eu-central-1b"]}
GCP: Body = {"project_id": "my-project", "region": "europe-west4", "zones": ["europe-west4-a"]}


@pytest.mark.parametrize(("cloud", "good"), [("aws", AWS), ("gcp", GCP)])
def test_good_variables_are_accepted(cloud: str, good: Body, tmp_path: Path) -> None:
    assert plan(TERRAFORM / cloud, tmp_path, good) == ""


# Each plan reports the errors of all variables, so a few plans try many wrong ones.
WRONG: list[tuple[str, Body, list[str]]] = [
    (
        "aws",
        {
            "name": "Sie_1",
            "vpc_cidr": "10.64.0.0/24",
            "zones": ["eu-central-1a"],
            "api_cidrs": ["0.0.0.0/0", "203.0.113.7/32"],
            "kubernetes_version": "latest",
            "namespace": "sie/prod",
            "release": "",
            "pools": {
                "arm": {
                    "instance_types": ["g5g.xlarge", "p6e-gb200.36xlarge", "g4ad.xlarge", "p6-b200.48xlarge"],
                    "max_gpus": 8,
                },
                "nogpu": {"instance_types": ["m7i.xlarge"], "max_gpus": 1},
                "nolimit": {"instance_types": ["m7i.xlarge"]},
                "cheap": {"instance_types": ["m7i.xlarge"], "max_cpus": 4, "spot": True},
                "none": {"instance_types": [], "max_cpus": 4},
                "word": {"instance_types": ["large"], "max_cpus": 4},
                "disk": {"instance_types": ["m7i.xlarge"], "max_cpus": 4, "disk_gb": 5},
                "half": {"instance_types": ["m7i.xlarge"], "max_cpus": 4, "min_replicas": 0.5},
                "system": {"instance_types": ["m7i.xlarge"], "max_cpus": 4},
            },
        },
        [
            'name is "Sie_1".',
            "one smaller than /20 leaves less than 512 addresses per zone",
            "zones has 1 entries, 1 of them different.",
            'api_cidrs has ["0.0.0.0/0"].',
            'kubernetes_version is "latest".',
            'namespace is "sie/prod".',
            'release is "".',
            'pools: ["g5g.xlarge","p6e-gb200.36xlarge","g4ad.xlarge"] has an Arm processor',
            'pools: ["nogpu"]. A pool with max_gpus above 0 needs instance types with a GPU',
            'pools: ["nolimit"] needs one limit',
            'pools: ["cheap"] uses spot instances and has no taint',
            'pools: ["none"] has no instance_types.',
            'pools: ["large"] is no instance type.',
            'pools: ["disk"] has disk_gb outside of 50 to 2000.',
            'pools: ["half"] has min_replicas that is no whole number.',
            'pools has the names ["system"].',
        ],
    ),
    (
        "aws",
        {"vpc_cidr": "10.64.0.5/16", "zones": ["a", "a"], "api_cidrs": ["office"], "pools": {}},
        [
            'vpc_cidr is "10.64.0.5/16", which is no IPv4 range.',
            "2 entries, 1 of them",
            '["office"]',
            "pools is empty",
        ],
    ),
    ("aws", {"vpc_cidr": "8.8.0.0/16"}, ['vpc_cidr is "8.8.0.0/16", which is not private.']),
    (
        "gcp",
        {
            "project_id": "My Project",
            "name": "s",
            "zones": ["europe-west1-b"],
            "vpc_cidr": "10.64.0.0/21",
            "api_cidrs": ["::/0"],
            "release_channel": "NIGHTLY",
            "system_machine_type": "g2-standard-8",
            "pools": {
                "arm": {"machine_type": "c4a-standard-8", "max_nodes": 1},
                "cheap": {"machine_type": "e2-standard-4", "max_nodes": 1, "spot": True},
                "nothing": {"machine_type": "g2-standard-8", "max_nodes": 0},
                "word": {"machine_type": "large", "max_nodes": 1},
                "taint": {
                    "machine_type": "g2-standard-8",
                    "max_nodes": 1,
                    "taints": [{"key": "nvidia.com/gpu"}],
                },
                "Upper": {"machine_type": "g2-standard-8", "max_nodes": 1},
            },
        },
        [
            'project_id is "My Project".',
            'name is "s".',
            'zones has ["europe-west1-b"], not in the region "europe-west4".',
            "A range smaller than /20 has pods for less than 32 nodes.",
            'api_cidrs has ["::/0"].',
            'release_channel is "NIGHTLY".',
            'system_machine_type is "g2-standard-8".',
            'pools: ["c4a-standard-8"] has an Arm processor.',
            'pools: ["cheap"] uses spot machines and has no taint',
            'pools: ["nothing"] needs a whole number of max_nodes',
            'pools: ["large"] is no machine type.',
            "The taint nvidia.com/gpu is set by GKE and must not be named.",
            'pools has the names ["Upper"].',
        ],
    ),
    (
        "gcp",
        {"region": "europe-west4-a", "zones": ["europe-west4-a-a"], "control_plane_cidr": "10.64.200.0/24"},
        [
            'region is "europe-west4-a". Write a region',
            'control_plane_cidr is "10.64.200.0/24". GKE needs a range of exactly /28',
            'control_plane_cidr "10.64.200.0/24" is inside of vpc_cidr',
        ],
    ),
]


@pytest.mark.parametrize(
    ("cloud", "wrong", "messages"), WRONG, ids=[f"{cloud}-{len(wrong)}" for cloud, wrong, _ in WRONG]
)
def test_wrong_variables_are_refused_by_name(
    cloud: str, wrong: Body, messages: list[str], tmp_path: Path
) -> None:
    found = plan(TERRAFORM / cloud, tmp_path, (AWS if cloud == "aws" else GCP) | wrong)
    assert [message for message in messages if message not in found] == [], found
    assert found.count("Invalid value for variable") == len(messages), found


NODES: Body = {
    "node_role": "sie-node",
    "subnet_ids": ["subnet-1", "subnet-2"],
    "security_group_id": "sg-1",
    "namespace": "sie",
    "models_bucket": "sie-models-1",
    "region": "eu-central-1",
    "shared_volume_id": "fs-1",
    "pools": {
        "l4": {
            "instance_types": ["g6.xlarge"],
            "max_gpus": 2,
            "max_cpus": 0,
            "spot": True,
            "taints": [],
            "disk_gb": 150,
        },
        "cpu": {
            "instance_types": ["m7i.xlarge"],
            "max_gpus": 0,
            "max_cpus": 8,
            "spot": False,
            "taints": [{"key": "batch", "value": "true", "effect": "NoSchedule"}],
            "disk_gb": 100,
        },
    },
}


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("nodes")
    return list(yaml.safe_load_all(outputs(TERRAFORM / "aws" / "nodes", folder, NODES)["manifests"]))


def test_manifests_of_the_aws_pools(manifests: list[Any]) -> None:
    by_name = {(item["kind"], item["metadata"]["name"]): item for item in manifests}
    spec = by_name["NodePool", "l4"]["spec"]
    assert spec["limits"] == {"nvidia.com/gpu": "2"}
    assert spec["template"]["spec"]["taints"] == [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]
    assert spec["template"]["metadata"]["labels"] == {"sie-pool": "l4"}
    requirements = {item["key"]: item["values"] for item in spec["template"]["spec"]["requirements"]}
    assert requirements["karpenter.sh/capacity-type"] == ["spot"]
    assert ("NodeClass", spec["template"]["spec"]["nodeClassRef"]["name"]) in by_name
    cpu = by_name["NodePool", "cpu"]["spec"]
    assert cpu["limits"] == {"cpu": "8"}
    assert cpu["template"]["spec"]["taints"] == [{"key": "batch", "value": "true", "effect": "NoSchedule"}]

    claim, volume = by_name["PersistentVolumeClaim", "sie-models"], by_name["PersistentVolume", "sie-models"]
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
    assert volume["spec"]["claimRef"] == {
        "namespace": claim["metadata"]["namespace"],
        "name": claim["metadata"]["name"],
    }
    assert by_name["StorageClass", "sie-shared"]["parameters"]["fileSystemId"] == "fs-1"


def test_aws_manifests_fit_their_schemas(manifests: list[Any]) -> None:
    without = {"NodeClass", "IngressClassParams"}  # of EKS Auto Mode, which publishes no schema
    checked = [each for each in manifests if each["kind"] not in without]
    core = [each for each in checked if each["kind"] != "NodePool"]
    assert len(core) == 6
    assert [reason for each in core if (reason := invalid(each))] == []
    pools = of_kind(checked, "NodePool")
    assert len(pools) == 2
    assert [reason for each in pools if (reason := invalid(each))] == []


VALUES: Body = {
    "name": "sie",
    "image_repository": "registry.example/sie-server",
    "models_volume": {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "readOnly": True}},
    "pod_annotations": {"gke-gcsfuse/volumes": "true"},
    "storage_egress": [{"cidr": "199.36.153.8/30", "port": 443}],
    "pools": {
        "l4": {
            "vcpus": 4,
            "memory_mib": 16384,
            "gpus": 1,
            "min_replicas": 0,
            "max_replicas": 4,
            "taints": [],
        },
        "h100": {
            "vcpus": 208,
            "memory_mib": 1900544,
            "gpus": 8,
            "min_replicas": 1,
            "max_replicas": 16,
            "taints": [],
        },
        "cpu": {
            "vcpus": 8,
            "memory_mib": 32768,
            "gpus": 0,
            "min_replicas": 1,
            "max_replicas": 2,
            "taints": [{"key": "spot", "value": "true", "effect": "NO_SCHEDULE"}],
        },
    },
}


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return yaml.safe_load(outputs(TERRAFORM / "values", tmp_path_factory.mktemp("values"), VALUES)["yaml"])


def test_values_give_each_replica_its_share_of_a_node(values: Any) -> None:
    pools = {pool["name"]: pool for pool in values["pools"]}
    assert pools["l4"]["resources"] == {
        "requests": {"cpu": "3", "memory": "12Gi"},
        "limits": {"cpu": "3", "memory": "12Gi", "nvidia.com/gpu": "1"},
    }
    assert pools["h100"]["resources"]["requests"] == {"cpu": "22", "memory": "197Gi"}
    assert pools["cpu"]["resources"]["limits"] == {"cpu": "6", "memory": "26Gi"}
    assert pools["cpu"]["tolerations"] == [
        {"key": "spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    ]
    assert (pools["l4"]["device"], pools["cpu"]["device"]) == ("cuda", "cpu")
    assert (pools["l4"]["minReplicas"], pools["l4"]["replicas"]) == (0, 1)


def test_values_refuse_more_replicas_than_a_pool_can_have(tmp_path: Path) -> None:
    pool = VALUES["pools"]["l4"] | {"min_replicas": 5}
    with pytest.raises(AssertionError, match=r'pools: \["l4"\] has min_replicas above its limit'):
        outputs(TERRAFORM / "values", tmp_path, VALUES | {"pools": {"l4": pool}})


def test_the_chart_runs_with_the_values(values: Any) -> None:
    given = merged(values, {"image": {"tag": "1"}, "keys": {"existingSecret": "sie-keys"}})
    objects = {(each["kind"], each["metadata"]["name"]): each for each in rendered(given)}
    assert ("ServiceAccount", VALUES["name"]) in objects  # which may read the bucket
    for name, device in (("l4", "nvidia.com/gpu"), ("cpu", "spot")):
        pod = objects["Deployment", f"sie-{name}"]["spec"]["template"]["spec"]
        assert pod["nodeSelector"] == {"sie-pool": name}
        assert device in {toleration["key"] for toleration in pod["tolerations"]}
        assert VALUES["models_volume"]["csi"] in [volume.get("csi") for volume in pod["volumes"]]

    scale = yaml.safe_load((TERRAFORM / "values" / "scale-to-zero.yaml").read_text())
    created = rendered(merged(given, scale))
    scaled = of_kind(created, "ScaledObject")
    assert sorted(each["spec"]["minReplicaCount"] for each in scaled) == [0, 1, 1]
    assert of_kind(created, "ServiceMonitor"), "KEDA would read metrics that Prometheus does not have"
    assert of_kind(created, "Ingress"), "nothing would count requests while no pod runs"
    (policy,) = of_kind(created, "NetworkPolicy")
    allowed = yaml.safe_dump(policy["spec"]["ingress"][0]["from"])
    assert "ingress-nginx" in allowed and "monitoring" in allowed


def test_examples_print_what_the_pages_use() -> None:
    for cloud in ("aws", "gcp"):
        example = read(TERRAFORM / cloud / "examples" / "scale-to-zero")
        missing = set(read(TERRAFORM / cloud).outputs) - set(example.outputs)
        assert missing == set(), f"{cloud}: the example does not print {missing}"
        pool = example.calls["sie"]["pools"]["l4"]
        assert (pool["spot"], pool["min_replicas"]) == (True, 0)
