"""A Kubernetes API server as far as helm's lookups read it: discovery, and the Secrets and claims of one namespace."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAMESPACE = "search"
KEPT = {"Secret": "secrets", "PersistentVolumeClaim": "persistentvolumeclaims"}  # kind → name in paths
KINDS = {
    "v1": (*KEPT, "ConfigMap", "Pod", "Service", "ServiceAccount"),
    "apps/v1": ("Deployment",),
    "autoscaling/v2": ("HorizontalPodAutoscaler",),
    "networking.k8s.io/v1": ("Ingress", "NetworkPolicy"),
    "policy/v1": ("PodDisruptionBudget",),
    "monitoring.coreos.com/v1": ("PodMonitor", "ServiceMonitor"),
    "ray.io/v1": ("RayService",),
}


def _resources(version: str) -> dict[str, Any]:
    resources = [
        {
            "name": KEPT.get(kind, f"{kind.lower()}s"),
            "kind": kind,
            "namespaced": True,
            "verbs": ["get", "list"],
        }
        for kind in KINDS[version]
    ]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}


def _group(version: str) -> dict[str, Any]:
    entry = {"groupVersion": version, "version": version.split("/")[1]}
    return {"name": version.split("/")[0], "versions": [entry], "preferredVersion": entry}


DISCOVERY: dict[str, Any] = {
    "/version": {"major": "1", "minor": "37", "gitVersion": "v1.37.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(v) for v in KINDS if v != "v1"]},
    **{f"/{'api' if version == 'v1' else 'apis'}/{version}": _resources(version) for version in KINDS},
}
MISSING = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}


def secret(name: str, *keys: str) -> dict[str, Any]:
    """Return a Secret with these keys."""
    return {
        "kind": "Secret",
        "apiVersion": "v1",
        "metadata": {"name": name},
        "data": dict.fromkeys(keys, "eA=="),
    }


def claim(name: str, storage_class: str, *modes: str) -> dict[str, Any]:
    """Return a PersistentVolumeClaim that the release `rerank` has created."""
    owner = {"meta.helm.sh/release-name": "rerank", "meta.helm.sh/release-namespace": NAMESPACE}
    return {
        "kind": "PersistentVolumeClaim",
        "apiVersion": "v1",
        "metadata": {"name": name, "annotations": owner, "labels": {"app.kubernetes.io/managed-by": "Helm"}},
        "spec": {"storageClassName": storage_class, "accessModes": list(modes)},
    }


@contextmanager
def cluster(*objects: dict[str, Any]) -> Iterator[str]:
    """Serve these objects until the end of the block; the value is the server's URL."""
    answers = dict(DISCOVERY)
    for kind, resource in KEPT.items():
        path = f"/api/v1/namespaces/{NAMESPACE}/{resource}"
        items = [each for each in objects if each["kind"] == kind]
        answers[path] = {"kind": f"{kind}List", "apiVersion": "v1", "metadata": {}, "items": items}
        answers |= {f"{path}/{each['metadata']['name']}": each for each in items}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path.split("?")[0], MISSING)
            body = json.dumps(answer).encode()
            self.send_response(200 if answer is not MISSING else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
