"""Upgrades change no immutable field, and the state of the cluster is checked before anything is created."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.deploy import chart
from support.deploy.api_server import NAMESPACE, claim, cluster, secret
from support.deploy.chart import CHART, Object, example, merged, of_kind, rendered

# Fields that the API server does not let an update change.
IMMUTABLE = {
    "Deployment": ("selector",),
    "PersistentVolumeClaim": ("accessModes", "storageClassName", "volumeName", "volumeMode"),
    "Service": ("clusterIP", "clusterIPs", "ipFamilies"),
}
CHANGES: list[Object] = [
    {"image": {"tag": "2.0.0-cpu"}, "config": {"max_wait_s": 5}},
    {
        "podAnnotations": {"a": "b"},
        "service": {"annotations": {"a": "b"}},
        "monitoring": {"serviceMonitor": False},
    },
    {"autoscaling": {"kind": "keda", "keda": {"serverAddress": "http://prometheus:9090"}}},
    {"keys": {"existingSecret": "other"}, "models": {"claim": {"size": "90Gi"}}, "rollout": {"preStopS": 20}},
    {"networkPolicy": {"enabled": False}, "ingress": {"enabled": False}},
]


def immutable(objects: list[Object]) -> dict[tuple[str, str], Object]:
    return {
        (each["kind"], each["metadata"]["name"]): {
            key: each["spec"].get(key) for key in IMMUTABLE[each["kind"]]
        }
        for each in of_kind(objects, *IMMUTABLE)
    }


@pytest.mark.parametrize("changes", CHANGES)
def test_an_upgrade_changes_no_immutable_field(changes: Object) -> None:
    before, after = (
        immutable(rendered(values)) for values in (example("cpu"), merged(example("cpu"), changes))
    )
    assert {kind for kind, _ in before} == set(IMMUTABLE)
    assert before == after


def test_a_new_version_of_the_chart_keeps_selectors_and_names(tmp_path: Path) -> None:
    newer = tmp_path / "sie"
    shutil.copytree(CHART, newer)
    about = (newer / "Chart.yaml").read_text(encoding="utf-8")
    changed = about.replace("version: 1.0.0", "version: 9.9.9").replace("1.0.0+self.1", "9.9.9")
    assert changed.count("9.9.9") == 2
    (newer / "Chart.yaml").write_text(changed, encoding="utf-8")
    done = chart.run("template", "rerank", str(newer), "--namespace", NAMESPACE, values=example("cpu"))
    assert "9.9.9" in done.stdout
    assert immutable(chart.loaded(done.stdout)) == immutable(rendered(example("cpu")))


def test_a_renamed_pool_is_another_deployment() -> None:
    values = example("cpu")
    values["pools"][0]["name"] = "other"
    before, after = (
        {each["metadata"]["name"]: each["spec"]["selector"] for each in of_kind(rendered(v), "Deployment")}
        for v in (example("cpu"), values)
    )
    assert not before.keys() & after.keys()


def test_pods_are_replaced_one_by_one_and_never_missed() -> None:
    for name in ("trial", "cpu", "aws-gpu"):
        for each in of_kind(rendered(example(name)), "Deployment"):
            assert each["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
            # an upgrade must not undo the work of an autoscaler
            assert ("replicas" in each["spec"]) == (name == "trial")


def test_uninstalling_keeps_models() -> None:
    for each in of_kind(rendered(example("cpu")), "PersistentVolumeClaim"):
        assert each["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def installed(values: Object, *objects: Object) -> str:
    """Return the messages of an installation in a cluster with these objects; empty if it goes through."""
    with cluster(*objects) as url:
        done = chart.run(
            *("template", "rerank", str(CHART), "--namespace", NAMESPACE, "--dry-run=server"),
            *(
                "--disable-openapi-validation",
                "--kube-apiserver",
                url,
                "--show-only",
                "templates/serviceaccount.yaml",
            ),
            values=values,
        )
    assert ("kind: ServiceAccount" in done.stdout) == (done.returncode == 0)
    return done.stderr


KEYS = secret("sie-keys", "keys.toml")
TEST_KEY = secret("sie-test-key", "key")
MODELS = claim("rerank-sie-models", "shared", "ReadWriteMany")


@pytest.mark.parametrize(
    ("name", "objects", "message"),
    [
        ("cpu", [KEYS, TEST_KEY], ""),
        ("cpu", [KEYS, TEST_KEY, MODELS], ""),
        ("trial", [], ""),
        (
            "cpu",
            [TEST_KEY],
            "keys.existingSecret: the namespace search has no Secret sie-keys: create it first",
        ),
        ("cpu", [KEYS], "tests.keySecret: the namespace search has no Secret sie-test-key"),
        (
            "cpu",
            [secret("sie-keys", "keys.yaml", "b"), TEST_KEY],
            "keys.existingSecret: the Secret sie-keys has no key keys.toml; it has: b, keys.yaml",
        ),
        (
            "mirror",
            [secret("sie-keys", "api-keys.toml"), secret("hub", "token")],
            "image.pullSecrets: the namespace search has no Secret registry",
        ),
        ("ray", [KEYS], "ray.redis.passwordSecret: the namespace search has no Secret redis"),
        ("ray-autoscaled", [KEYS], "ray.authSecret: the namespace search has no Secret ray-token"),
        (
            "ray-autoscaled",
            [KEYS],
            "models.volume: the namespace search has no PersistentVolumeClaim sie-models",
        ),
        (
            "cpu",
            [KEYS, TEST_KEY, claim("rerank-sie-models", "slow", "ReadWriteMany")],
            "models.claim.storageClassName (slow, now shared) cannot change in the existing claim rerank-sie-models",
        ),
        (
            "cpu",
            [KEYS, TEST_KEY, claim("rerank-sie-models", "shared", "ReadWriteOnce")],
            "models.claim.accessMode (ReadWriteOnce, now ReadWriteMany) cannot change in the existing claim",
        ),
    ],
)
def test_the_cluster_is_checked_first(name: str, objects: list[Object], message: str) -> None:
    found = installed(example(name), *objects)
    assert (message in found) if message else found == ""


def test_the_check_of_the_cluster_can_be_switched_off() -> None:
    assert installed({**example("cpu"), "preflight": False}) == ""
