"""An application of Ray Serve without any code of this project: what Serve alone costs a request.

    python -m bench.cluster.bare serve --ray ...

Its ingress sends the bytes of a body to a replica, which returns a response of the usual size. No application can be
faster behind the same proxy.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.routing import Mount

from sie_server.cluster.ingress.ingress import NAME
from sie_server.config import ServerConfig

RESPONSE = bytes(5_000)  # that of the benchmark's requests has about this size
JSON = [(b"content-type", b"application/json")]


class BareReplica:
    """Returns a response at once."""

    async def call(self, body: bytes) -> bytes:
        """Return as many bytes as a real response has."""
        return RESPONSE


class BareIngress:
    """Sends each POST to the replica, and answers everything else itself."""

    def __init__(self, replica: DeploymentHandle[Any]) -> None:
        self._handle = replica

    def __serve_build_asgi_app__(self) -> Starlette:
        return Starlette(routes=[Mount("/", app=self._serve)])

    async def _serve(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        answer = b"{}"
        if scope["method"] == "POST":
            body, more = b"", True
            while more:
                message = await receive()
                body, more = body + message.get("body", b""), message.get("more_body", False)
            answer = await self._handle.call.remote(body)
        headers = [*JSON, (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


def application(config: ServerConfig) -> serve.Application:
    """Return the application, with the resources that the configuration gives to ours."""
    quiet: dict[str, Any] = {"max_ongoing_requests": 100_000, "logging_config": {"enable_access_log": False}}
    cpus = {"num_cpus": config.cluster.ingress_cpus}
    replica = serve.deployment(BareReplica).options(name="bare", ray_actor_options=cpus, **quiet)
    ingress = serve.deployment(serve.ingress()(BareIngress)).options(
        name=NAME, num_replicas=config.cluster.ingress_replicas, ray_actor_options=cpus, **quiet
    )
    return ingress.bind(replica.bind())


def main() -> None:
    """Run the command line of the server with this application."""
    from bench.cluster import bare  # by its name, because other processes import the classes from there

    from sie_server.cli import main as command_line
    from sie_server.cluster import app

    app.application = bare.application
    command_line()


if __name__ == "__main__":
    main()
