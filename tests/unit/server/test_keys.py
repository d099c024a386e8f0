"""API keys are parsed or refused, and never shown; the gate authenticates requests and recognises local callers."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Any

import pytest

from sie_server import keys
from sie_server.api.edge.gate import Gate, is_loopback
from sie_server.api.edge.paths import HEALTH
from sie_server.config import ConfigError, Secret, ServerConfig, load_config
from sie_server.errors import Forbidden, Unauthorized
from sie_server.keys import find_key, read_keys

INFER, ADMIN = "infer-3f9a27c1d05b", "admin-8c1e64b7:a290"  # a key may contain colons


def from_text(text: str) -> ServerConfig:
    return load_config({}, {"SIE_API_KEYS": text}, None)


def test_both_sources_are_read(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    digest = hashlib.sha256(ADMIN.encode()).hexdigest().upper()
    file.write_text(
        f'[[key]]\nname = "ops"\nkey_sha256 = "{digest}"\nscopes = ["admin"]\n'
        '[[key]]\nname = "web"\nkey = "0123456789abcdef"\n'
    )
    environment = {"SIE_API_KEYS": f"{INFER}, both:infer+admin:x{ADMIN}", "SIE_API_KEYS_FILE": str(file)}
    found = read_keys(load_config({}, environment, None))
    assert [(key.name, sorted(key.scopes)) for key in found] == [
        ("key-1", ["infer"]),
        ("both", ["admin", "infer"]),
        ("ops", ["admin"]),
        ("web", ["infer"]),
    ]
    for sent, name in ((INFER, "key-1"), ("x" + ADMIN, "both"), (ADMIN, "ops"), ("0123456789abcdef", "web")):
        key = find_key(found, sent.encode())
        assert key is not None and key.name == name
    for sent in ("", INFER[:-1], INFER + " ", INFER.upper(), "ops"):
        assert find_key(found, sent.encode()) is None
    assert find_key(found, b"\xff\x00") is None
    assert found[2].may("infer") and found[2].may("admin") and not found[0].may("admin")
    assert read_keys(ServerConfig()) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "key 1: a key must have at least 16"),
        (f"{INFER},", "key 2: a key must have at least 16"),
        ("short-key-15chr", "key 1: a key must have at least 16"),
        ("zwölf-zeichen-und-mehr", "visible ASCII"),
        ("a key with some spaces", "visible ASCII"),
        (f"ops:{INFER}", "key 1: expected KEY or NAME:SCOPES:KEY"),
        (f"{INFER}:ops:admin", "key 1: expected at least one of the scopes infer and admin"),
        (f"ops:{INFER}:admin", "key 1: expected at least one of the scopes infer and admin"),
        (f"ops::{INFER}", "scopes"),
        (f"ops:root+infer:{INFER}", "scopes"),
        (f"söme:infer:{INFER}", "name"),
        (f"{INFER},x:infer:{INFER}", "two API keys have the same key"),
        (f"a:infer:{INFER},a:infer:{INFER}2", "two API keys have the same name"),
    ],
)
def test_invalid_keys_are_refused_and_not_shown(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        read_keys(from_text(text))
    assert INFER not in str(caught.value) and "zeichen" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "contains no API keys"),
        ("[[key]]\nname = 'a'\n", "either key or key_sha256"),
        (f"[[key]]\nname = 'a'\nkey = '{INFER}'\nkey_sha256 = '{'0' * 64}'", "either key or key_sha256"),
        ("[[key]]\nname = 'a'\nkey_sha256 = 'f00'", "64 digits"),
        (f"[[key]]\nname = 'a'\nkey = '{INFER}'\nscopes = 'admin'", "expected only"),
        (f"[[key]]\nname = 'a'\n'{INFER}' = 'key'", "expected only"),
        (f"[[keys]]\nname = 'a'\nkey = '{INFER}'", "expected only"),
        (f"key = '{INFER}'", "expected only"),
        (f"[[key]]\nname = 'a'\nkey = {INFER}", "line 3"),
        (None, "cannot read"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "keys.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=words) as caught:
        read_keys(ServerConfig(api_keys_file=str(file)))
    assert INFER not in str(caught.value) and str(file) in str(caught.value)


def test_a_configuration_does_not_show_its_keys(tmp_path: Path) -> None:
    config = from_text(f"ops:admin:{INFER}")
    shown = [repr(config), str(config), repr(read_keys(config)), repr(list(config.__rich_repr__()))]
    assert not any(INFER in text for text in shown)
    assert config.api_keys == Secret(f"ops:admin:{INFER}")
    assert hashlib.sha256(INFER.encode()).hexdigest() not in shown[2]
    file = tmp_path / "sie.toml"
    file.write_text(f"api_keys = ['{INFER}']")
    with pytest.raises(ConfigError, match="api_keys") as caught:
        load_config({}, {}, str(file))
    assert INFER not in str(caught.value)
    file.write_text(f"api_keys = '{INFER}'")
    assert read_keys(load_config({}, {}, str(file)))[0].name == "key-1"


def test_every_key_is_always_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Returning at the first match would reveal by timing which key matched."""
    compared: list[bytes] = []

    def count(ours: bytes, sent: bytes) -> bool:
        compared.append(ours)
        return real(ours, sent)

    real = hmac.compare_digest
    monkeypatch.setattr(keys.hmac, "compare_digest", count)
    known = read_keys(from_text(",".join(f"{INFER}{i}" for i in range(5))))
    for sent in (f"{INFER}0", f"{INFER}4", "wrong", ""):
        compared.clear()
        find_key(known, sent.encode())
        assert compared == [key.digest for key in known]
        assert all(len(digest) == 32 for digest in compared)


# ── the gate ──


def asgi(path: str, peer: str | None = "127.0.0.1", **headers: str) -> dict[str, Any]:
    """Return the ASGI scope that the gate reads."""
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http", "path": path, "headers": raw, "client": peer and (peer, 5000)}


def test_open_inference_needs_keys_for_admin_routes_only() -> None:
    gate = Gate(read_keys(from_text(f"web:infer:{INFER},ops:admin:{ADMIN}")), open_inference=True)
    known, unknown, admin = (f"Bearer {key}" for key in (INFER, "not-a-key-of-this-server", ADMIN))
    assert gate.admit(asgi("/v1/score/m", "8.8.8.8")) is None
    assert gate.admit(asgi("/v1/score/m", authorization=known)) == "web"
    assert gate.admit(asgi("/v1/admin/load", authorization=admin)) == "ops"
    assert not gate.is_admin(asgi("/v1/models"))
    refused = [
        asgi("/v1/score/m", authorization=unknown),
        asgi("/v1/score/m", x_api_key="not-a-key-of-this-server"),
        asgi("/v1/admin/load"),
        asgi("/v1/admin/load", authorization=known),
    ]
    for one in refused:
        with pytest.raises((Unauthorized, Forbidden)):
            gate.admit(one)


GATE = Gate(read_keys(from_text(f"web:infer:{INFER},ops:admin:{ADMIN}")))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_key_opens_its_routes(scheme: str) -> None:
    header = f"{scheme} {INFER}"
    assert GATE.admit(asgi("/v1/score/a/b", authorization=header)) == "web"
    with pytest.raises(Forbidden, match="'web' lacks the scope 'admin'"):
        GATE.admit(asgi("/v1/admin/load", authorization=header))
    assert GATE.admit(asgi("/v1/admin/load", "8.8.8.8", authorization=f"{scheme} {ADMIN}")) == "ops"
    assert GATE.admit(asgi("/v1/models", authorization=f"{scheme} {ADMIN}")) == "ops"


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic abc", INFER, "Bearer wrong", "Bearer \xff\xfe", "\xe9" * 2000]
)
def test_invalid_credentials_are_refused_even_on_this_machine(header: str) -> None:
    for path in ("/v1/score/a", "/v1/admin/load", "/v1/models", "/nowhere", "/", "/docsx", "/v1/admin"):
        with pytest.raises(Unauthorized):
            GATE.admit(asgi(path, authorization=header))
        with pytest.raises(Unauthorized):
            GATE.admit(asgi(path))
    two = asgi("/v1/models", authorization=f"Bearer {INFER}")
    two["headers"] *= 2
    with pytest.raises(Unauthorized):
        GATE.admit(two)


def test_open_routes_stay_open() -> None:
    for path in (*HEALTH, "/metrics", "/openapi.json", "/docs", "/docs/static/x.css"):
        assert GATE.admit(asgi(path, "8.8.8.8")) is None


@pytest.mark.parametrize(
    ("peer", "headers", "admitted"),
    [
        ("127.0.0.1", {"host": "localhost:8080"}, True),
        ("127.9.9.9", {"host": "127.0.0.1"}, True),
        ("::1", {"host": "[::1]:8080"}, True),
        ("::ffff:127.0.0.1", {"host": "LOCALHOST"}, True),
        ("127.0.0.1", {}, True),
        ("10.0.0.1", {"host": "localhost:8080"}, False),
        ("::ffff:10.0.0.1", {"host": "localhost"}, False),
        ("0.0.0.0", {"host": "localhost"}, False),
        ("fe80::1%eth0", {"host": "localhost"}, False),
        ("testclient", {"host": "localhost"}, False),
        ("", {"host": "localhost"}, False),
        (None, {"host": "localhost"}, False),  # a Unix socket has no peer address
        ("127.0.0.1", {"host": "evil.example:8080"}, False),  # DNS rebinding
        ("127.0.0.1", {"host": "localhost.evil.example"}, False),
        ("127.0.0.1", {"host": "evil@localhost"}, False),
        ("127.0.0.1", {"host": "[::1"}, False),
        ("127.0.0.1", {"host": ""}, False),
        ("127.0.0.1", {"host": "\xe9"}, False),
        ("127.0.0.1", {"host": "localhost", "x_forwarded_for": "127.0.0.1"}, False),
        ("127.0.0.1", {"host": "localhost", "forwarded": "for=127.0.0.1"}, False),
        ("127.0.0.1", {"host": "localhost", "x_real_ip": "127.0.0.1"}, False),
    ],
)
def test_without_keys_admin_routes_need_a_local_caller(
    peer: str | None, headers: dict[str, str], admitted: bool
) -> None:
    gate = Gate(())
    assert gate.admit(asgi("/v1/score/a", peer, **headers)) is None
    if admitted:
        assert gate.admit(asgi("/v1/admin/load", peer, **headers)) is None
    else:
        with pytest.raises(Forbidden, match="SIE_API_KEYS"):
            gate.admit(asgi("/v1/admin/load", peer, **headers))


def test_addresses_of_this_machine() -> None:
    assert all(is_loopback(a) for a in ("127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"))
    assert not any(is_loopback(a) for a in ("", "localhost", "1.2.3.4", "::", "::2", "::ffff:8.8.8.8"))
