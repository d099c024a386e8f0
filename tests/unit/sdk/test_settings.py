"""Client settings from arguments, environment variables and defaults."""

from __future__ import annotations

import pytest

from sie_sdk import SIEClient
from sie_sdk.settings import resolve, skewed


def test_defaults() -> None:
    settings = resolve()
    assert (settings.base_url, settings.timeout, settings.deadline) == ("http://localhost:8080", 150.0, 900.0)
    assert "Authorization" not in settings.headers


def test_arguments_override_the_environment_and_it_overrides_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SIE_BASE_URL", "https://sie.example/x/")
    monkeypatch.setenv("SIE_API_KEY", "from-env\n")
    monkeypatch.setenv("SIE_TIMEOUT", "12.5")
    settings = resolve()
    assert (settings.base_url, settings.timeout) == ("https://sie.example/x", 12.5)
    assert settings.headers["Authorization"] == "Bearer from-env"
    settings = resolve("http://other:1", api_key="given", timeout=3)
    assert (settings.base_url, settings.timeout) == ("http://other:1", 3.0)
    assert settings.headers["Authorization"] == "Bearer given"


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIE_BASE_URL", "SIE_API_KEY", "SIE_TIMEOUT"):
        monkeypatch.setenv(name, " ")
    assert resolve() == resolve("http://localhost:8080", timeout=150)


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf"])
def test_a_bad_timeout_variable_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SIE_TIMEOUT", value)
    with pytest.raises(ValueError, match=f"SIE_TIMEOUT is '{value}'"):
        SIEClient()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), True, "5"])
def test_bad_times_are_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout is"):
        resolve(timeout=timeout)
    with pytest.raises(ValueError, match="deadline is"):
        resolve(deadline=timeout)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8080",
        "ftp://host",
        "http://",
        "//host",
        "http://host?x=1",
        "http://host#x",
        "http://host:99999",
        "http://a b",
        "http://host/\x01",
    ],
)
def test_bad_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError):
        SIEClient(url)


def test_a_key_that_no_header_can_carry_is_refused_and_not_shown() -> None:
    for key in ("se\ncret", "secr\u00e9t"):
        with pytest.raises(ValueError, match="Authorization") as caught:
            SIEClient(api_key=key)
        assert "cr" not in str(caught.value).replace("characters", "")


def test_a_longer_attempt_extends_the_deadline() -> None:
    assert resolve(timeout=1800).deadline == 1800
    assert resolve(timeout=1800, deadline=60).deadline == 60


@pytest.mark.parametrize(
    ("ours", "theirs", "skew"),
    [
        ("0.1.0", "0.1.9", False),
        ("0.1.0", "0.2.0", False),
        ("0.3.0", "0.1.0", True),
        ("0.1.0", "0.3.0rc1", True),
        ("1.0", "v1.1", False),
        ("1.0.0", "2.0.0", True),
        ("0.1.0", "nightly", False),
        ("0.1.0", "", False),
        ("1.0.0+self.1", "1.1.0+self.1", False),
        ("1.0.0+self.1", "1.2.0+self.1", True),
    ],
)
def test_skew_is_more_than_one_minor(ours: str, theirs: str, skew: bool) -> None:
    assert skewed(ours, theirs) is skew
