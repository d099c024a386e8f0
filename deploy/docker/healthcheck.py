"""Exit with status 0 if the server in this container answers `/readyz` with 200, else with 1 and the reason.

It asks the port of `SIE_PORT`. It uses no proxy of the environment, and imports nothing of the server, to be quick.
"""

from __future__ import annotations

import http.client
import os
import sys

TIMEOUT_S = 4  # below the timeout of HEALTHCHECK


def problem(port: int) -> str | None:
    """Return why the server on this port of the container is not ready."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        text = answer.read(200).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"port {port}: {error!r}"
    finally:
        connection.close()
    return None if answer.status == 200 else f"port {port}: {answer.status} {text}"


if __name__ == "__main__":
    sys.exit(problem(int(os.environ.get("SIE_PORT", "8080"))))
