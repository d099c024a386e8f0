"""Deploy the application to a running Ray cluster and end; the cluster keeps it. Deployed again, it is replaced.

python -m bench.faults.deploy ADDRESS CONFIGURATION_FILE PORT
"""

from __future__ import annotations

import os
import sys


def main(address: str, file: str, port: str) -> None:
    """Deploy to all nodes, as a RayService does."""
    import ray
    from ray import serve

    from sie_server.cluster import app  # sets the variables that Ray reads when it is imported
    from sie_server.config import load_config

    ray.init(address=address, namespace="serve", log_to_driver=False)
    serve.start(proxy_location="EveryNode", http_options={"host": "0.0.0.0", "port": int(port)})
    config = load_config({}, os.environ, file)
    serve.run(app.application(config), name="sie", route_prefix="/", blocking=False)
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
