"""deploy/ray: launcher files and the application file for machines without Kubernetes, against Ray's own checks."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sie_server.cluster.environment import SETTINGS
from sie_server.config import ConfigError, load_config

ROOT = Path(__file__).parents[2]
RAY = ROOT / "deploy" / "ray"
CLOUDS = ["aws", "gcp"]


@pytest.fixture(params=CLOUDS)
def launcher(request: pytest.FixtureRequest) -> Any:
    return yaml.safe_load((RAY / f"{request.param}.yaml").read_text())


def checked(config: Any) -> Any:
    """Return the configuration with Ray's defaults, after Ray's own validation."""
    util = pytest.importorskip(
        "ray.autoscaler._private.util", reason="Ray (sie-server[ray]) is not installed"
    )
    full = util.prepare_config(copy.deepcopy(config))
    util.validate_config(full)
    return full


def test_ray_accepts_the_launcher_file(launcher: Any) -> None:
    assert set(checked(launcher)["available_node_types"]) == {"head", "ingress", "l4"}


def test_the_check_can_fail(launcher: Any) -> None:
    for wrong, message in (
        ({"max_worker": 3}, "max_worker"),
        ({"head_node_type": "boss"}, "head_node_type"),
        ({"max_workers": 1}, "min_workers"),  # fewer than the nodes that must run
    ):
        with pytest.raises(Exception, match=message):
            checked(launcher | wrong)


def test_nodes_are_private_and_no_replica_runs_on_the_head(launcher: Any) -> None:
    assert launcher["provider"]["use_internal_ips"] is True
    assert launcher["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in launcher["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in launcher["head_start_ray_commands"][-1]
    assert launcher["available_node_types"]["l4"]["min_workers"] == 0
    for rule in launcher["provider"].get("security_group", {}).get("IpPermissions", []):
        assert all(not item["CidrIp"].endswith("/0") for item in rule["IpRanges"])


def test_files_that_are_copied_exist_or_are_made_by_the_user(launcher: Any) -> None:
    local = set(launcher["file_mounts"].values())
    made = {"dist", "keys.toml", "~/.ray/auth_token"}
    assert {path for path in local - made if not (ROOT / path).is_file()} == set()
    remote = set(launcher["file_mounts"])
    application = yaml.safe_load((RAY / "serve.yaml").read_text())["applications"][0]
    assert application["args"]["config"]["api_keys_file"] in remote
    assert any(
        f"/mnt/{Path(application['args']['config']['models_dir']).name}" in line
        for line in launcher["setup_commands"]
    )


def test_every_ray_process_gets_the_environment(launcher: Any) -> None:
    starts = [
        line
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for line in launcher[key]
        if "ray start" in line
    ]
    assert len(starts) == 2
    assert all(
        line.startswith("set -a; . ~/ray-environment;") and "--disable-usage-stats" in line for line in starts
    )


def test_the_environment_is_that_of_the_cluster_package() -> None:
    lines = (RAY / "environment").read_text().splitlines()
    found = {
        name: value.strip('"')
        for name, _, value in (line.partition("=") for line in lines if line and line[0] != "#")
    }
    assert found.items() >= SETTINGS.items()
    assert found["RAY_AUTH_MODE"] == "token"


def test_ray_serve_accepts_the_application_file() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="Ray (sie-server[ray]) is not installed")
    deploy = yaml.safe_load((RAY / "serve.yaml").read_text())
    assert accepted(schema, deploy) == deploy
    application = deploy["applications"][0]
    assert accepted(schema, deploy | {"proxy_locatio": "EveryNode"}) == deploy
    with pytest.raises(ValueError, match="import_path"):
        accepted(schema, deploy | {"applications": [application | {"import_path": "no-module"}]})


def accepted(schema: Any, deploy: Any) -> Any:
    """Return what Ray Serve takes of an application file: it drops keys that it does not know without a word."""
    return schema.ServeDeploySchema.model_validate(deploy).model_dump(mode="json", exclude_unset=True)


def test_the_configuration_of_the_application_has_keys_of_the_server() -> None:
    application = yaml.safe_load((RAY / "serve.yaml").read_text())["applications"][0]
    package, _, function = application["import_path"].partition(":")
    file = ROOT / "packages/sie-server/src" / f"{package.replace('.', '/')}.py"
    assert re.search(rf"^(async )?def {function}\(", file.read_text(), re.MULTILINE)
    load_config(application["args"]["config"], {}, None)
    with pytest.raises(ConfigError, match=r"modelz.dir"):
        load_config(application["args"]["config"] | {"modelz_dir": "x"}, {}, None)
