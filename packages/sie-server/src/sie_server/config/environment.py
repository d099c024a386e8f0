"""`SIE_*` variables: which ones are settings of the server, and which ones belong to other programs.

Kubernetes sets variables for every Service of a namespace in its containers, and Docker for every link. Those of a
Service named `sie`, or `sie-…`, begin with `SIE_`. Their form distinguishes them from settings:

    SIE_SERVICE_HOST=10.0.0.1   SIE_PORT=tcp://10.0.0.1:8080           SIE_PORT_8080_TCP_ADDR=10.0.0.1
    SIE_SERVICE_PORT=8080       SIE_PORT_8080_TCP=tcp://10.0.0.1:8080  SIE_NAME=/web/sie (Docker)

Sources: kubernetes.io/docs/concepts/services-networking/service/#environment-variables, and "Legacy container links"
of docs.docker.com.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

PREFIX = "SIE_"
# of the clients and of this repository's tests, which may be set in the same shell
OTHER_PROGRAMS = frozenset(
    {
        "SIE_BASE_URL",
        "SIE_API_KEY",
        "SIE_ADMIN_KEY",
        "SIE_TIMEOUT",
        "SIE_CONFIG",
        "SIE_TEST_ATTENTION",
        "SIE_TEST_DEVICE",
        "SIE_HOSTILE",
        "SIE_HOSTILE_SLACK",
    }
)
LINK_NAME = re.compile(
    r"SIE_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?"
    r"|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|ADDR|PORT|START|END|PORT_START|PORT_END))?)"
)
LINK_PORT = re.compile(r"SIE_(?:\w+_)?PORT")
LINK_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://\S+", re.IGNORECASE)
ALIAS = re.compile(r"(SIE_(?:\w+_)?)NAME")
ALIAS_PATH = re.compile(r"/[\w.-]+/[\w.-]+")  # /CONTAINER/ALIAS


def settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that set an option, known or not: option → text."""
    foreign = OTHER_PROGRAMS.union(service_links(environment))
    return {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(PREFIX) and name not in foreign
    }


def service_links(environment: Mapping[str, str]) -> list[str]:
    """Return the names of the `SIE_*` variables that Kubernetes or Docker made, sorted."""
    ours = {name: value for name, value in environment.items() if name.startswith(PREFIX)}
    aliases = tuple(
        f"{found[1]}ENV_"  # the environment of the linked container
        for name, value in ours.items()
        if (found := ALIAS.fullmatch(name)) and ALIAS_PATH.fullmatch(value)
    )
    return sorted(name for name, value in ours.items() if _is_link(name, value) or name.startswith(aliases))


def _is_link(name: str, value: str) -> bool:
    return (
        bool(LINK_NAME.fullmatch(name))
        or bool(LINK_PORT.fullmatch(name) and LINK_ADDRESS.fullmatch(value))
        or bool(ALIAS.fullmatch(name) and ALIAS_PATH.fullmatch(value))
    )
