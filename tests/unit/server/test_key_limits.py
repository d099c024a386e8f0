"""Limits of API keys: the file, the bucket and the accounts. The time is an argument, so nothing waits."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from sie_server.api.edge.connections.answers import headers_of
from sie_server.api.edge.limits.account import MOST_DELAY_S, REFUSALS_PER_S, Account, Visit
from sie_server.api.edge.limits.bucket import Bucket
from sie_server.api.edge.limits.fields import fields_of
from sie_server.config import ConfigError, Secret, ServerConfig
from sie_server.errors import InvalidInput, RateLimited
from sie_server.keys import ApiKey, read_keys
from sie_server.serving.metrics import RequestTiming
from sie_server.wire import KeyLimits

KEY = "infer-3f9a27c1d05b"
START = 1000.0
UNLIMITED = KeyLimits()

# ── the file ──


def read(tmp_path: Path, content: str, **more: str) -> dict[str, KeyLimits]:
    file = tmp_path / "keys.toml"
    file.write_text(content)
    secret = {"api_keys": Secret(more["api_keys"])} if more else {}
    return {key.name: key.limits for key in read_keys(ServerConfig(api_keys_file=str(file), **secret))}


def entry(name: str, *lines: str) -> str:
    return "\n".join(["[[key]]", f"name = '{name}'", f"key = '{KEY}-{name}'", *lines, ""])


def test_a_key_has_its_own_limits_or_those_of_the_file(tmp_path: Path) -> None:
    content = "[limits]\nconcurrent_requests = 4\n" + "".join(
        [
            entry("web"),
            entry("batch", "[key.limits]", "requests_per_second = 5", "tokens_per_minute = 600_000"),
            entry("free", "limits = {}"),
            entry("ops", "scopes = ['infer', 'admin']"),
        ]
    )
    default = KeyLimits(concurrent_requests=4)
    assert read(tmp_path, content, api_keys=f"{KEY},boss:admin:{KEY}-boss") == {
        "key-1": default,
        "boss": UNLIMITED,
        "web": default,
        "batch": KeyLimits(requests_per_second=5, tokens_per_minute=600_000),  # these alone
        "free": UNLIMITED,
        "ops": UNLIMITED,
    }


def test_a_file_may_have_only_limits_for_the_keys_of_the_variable(tmp_path: Path) -> None:
    content = "[limits]\nrequests_per_second = 0.5\nburst = 3\n"
    assert read(tmp_path, content, api_keys=KEY) == {"key-1": KeyLimits(requests_per_second=0.5, burst=3)}
    with pytest.raises(ConfigError, match="contains no API keys"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("requests_per_second = 0", "`float` >= 0.01 - at `$.key[0].limits.requests_per_second`"),
        ("requests_per_second = -5", "`float` >= 0.01"),
        ("requests_per_second = inf", "`float` <= 1000000.0"),
        ("requests_per_second = nan", "`float` >= 0.01"),
        ("requests_per_second = true", "got `bool`"),
        ("requests_per_second = '5'", "got `str`"),
        ("burst = 3", "key 1: limits: burst has a meaning only with requests_per_second"),
        ("requests_per_second = 1\nburst = 0", "`int` >= 1 - at `$.key[0].limits.burst`"),
        ("tokens_per_minute = 1", "`int` >= 10 - at `$.key[0].limits.tokens_per_minute`"),
        ("tokens_per_minute = -1000", "`int` >= 10"),
        ("tokens_per_minute = 1e5", "got `float`"),
        ("tokens_per_minute = 10000000000000000000000", "`int` <= 1000000000000"),
        ("concurrent_requests = 0", "`int` >= 1 - at `$.key[0].limits.concurrent_requests`"),
        ("concurrent_requests = 1000000", "`int` <= 100000"),
        ("requests_per_minute = 5", "unknown field - at `$.key[0].limits`"),
        (f"{KEY} = 5", "limits have requests_per_second, burst, tokens_per_minute, concurrent_requests"),
    ],
)
def test_limits_that_cannot_be_meant(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, entry("web", "[key.limits]", line))
    assert words in str(caught.value) and KEY not in str(caught.value)
    assert str(tmp_path / "keys.toml") in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, f"[limits]\n{line}\n{entry('web')}")
    assert words.replace("key[0].", "").replace("key 1: limits", "[limits]") in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (entry("ops", "scopes = ['admin']", "limits = {burst = 1, requests_per_second = 1}"), "scope admin"),
        (entry("web") + entry("web").replace(KEY, f"{KEY}x"), "two API keys have the same name"),
        (entry("web", "limits = 5"), "expected only"),
        (entry("web", "requests_per_second = 5"), "unknown field - at `$.key[0]`"),
        (f"limits = []\n{entry('web')}", "expected only"),
        (f"[limits]\n'x - at `${KEY}' = 1\n{entry('web')}", "unknown field - at `$.limits`"),
        (f"'x - at `${KEY}' = 1\n{entry('web')}", "concurrent_requests: unknown field"),
        (f"[limit]\nconcurrent_requests = 1\n{entry('web')}", "unknown field"),
        (f"[limits]\n[limits]\n{entry('web')}", "cannot read"),
    ],
)
def test_limits_in_the_wrong_place(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, content)
    assert words in str(caught.value) and KEY not in str(caught.value)


# ── the bucket ──


def test_a_bucket_allows_a_burst_and_then_its_rate() -> None:
    bucket = Bucket(0.1, 3)
    times, now = [], START
    while len(times) < 8:
        now += bucket.wait_s(1, now)
        bucket.spend(1, now)
        times.append(now - START)
    assert times == pytest.approx([0, 0, 0, 10, 20, 30, 40, 50])
    assert bucket.left(now + 1e6) == 3  # a pause fills it no further
    assert bucket.left(now) == 3  # a clock that goes back changes nothing


@pytest.mark.parametrize("rate", [0.01, 0.3, 7, 1e6])
def test_after_the_time_to_wait_the_units_are_there(rate: float) -> None:
    rng, bucket, now = random.Random(1), Bucket(rate, 5), 1e6
    for _ in range(200):
        bucket.spend(rng.random() * 9, now)
        now += bucket.wait_s(1, now)
        assert bucket.wait_s(1, now) == 0


# ── an account ──


def account(jitter: float = 0, **limits: float) -> Account:
    return Account(
        ApiKey("web", b"", frozenset({"infer"}), KeyLimits(**limits)),  # type: ignore[arg-type]
        lambda: jitter,
    )


def retry_after(one: Account, now: float) -> int:
    with pytest.raises(RateLimited) as caught:
        one.enter(now)
    assert "'web'" in caught.value.message
    return int(headers_of(caught.value)["Retry-After"])


def served(one: Account, tokens: int, now: float) -> Visit:
    visit = one.enter(now)
    visit.charge(tokens, now)
    visit.leave(200, tokens, now)
    return visit


def test_requests_per_second_with_a_burst() -> None:
    one = account(requests_per_second=0.25, burst=2)
    for _ in range(2):
        served(one, 1, START)
    assert retry_after(one, START) == 4
    assert retry_after(one, START + 3.5) == 1
    served(one, 1, START + 4)
    assert retry_after(one, START + 4) == 4  # refused requests have cost nothing
    assert one.usage(START + 4).refused.requests == 3
    default = account(requests_per_second=2.5)
    for _ in range(3):  # without burst: those of one second
        served(default, 1, START)
    assert retry_after(default, START) == 1


def test_concurrent_requests() -> None:
    one = account(concurrent_requests=2)
    first, second = one.enter(START), one.enter(START)
    assert retry_after(one, START) == 1
    first.leave(200, 5, START)
    third = one.enter(START)
    assert retry_after(one, START) == 1
    for visit in (second, third):
        visit.leave(500, 0, START)
    assert one.in_progress == 0 and one.usage(START).refused.concurrent == 2


def test_tokens_are_charged_exactly_and_a_debt_is_waited_for() -> None:
    one = account(tokens_per_minute=600)  # 10 a second
    served(one, 500, START)
    served(one, 600, START)  # into a debt of 500
    assert one.usage(START).tokens_left == -500
    assert retry_after(one, START) == 51
    assert retry_after(one, START + 50) == 1
    served(one, 1, START + 50.2)
    assert one.tokens == 1101
    for _ in range(100):
        now = START + 100
        with pytest.raises(RateLimited):
            while True:
                served(one, 600, now)
        assert one.usage(now).tokens_left > -600  # type: ignore[operator] - less than one quota


def test_a_request_that_entered_before_the_quota_was_used_up() -> None:
    one = account(tokens_per_minute=600)
    early, late = one.enter(START), one.enter(START)
    early.charge(600, START)
    with pytest.raises(RateLimited, match="tokens_per_minute = 600"):
        late.charge(5, START)
    late.leave(429, 0, START)
    early.leave(200, 600, START)
    usage = one.usage(START)
    assert (usage.tokens, usage.requests, usage.refused.tokens) == (600, 2, 1)


def test_a_request_larger_than_the_quota_can_never_be_served() -> None:
    one, timing = account(tokens_per_minute=600), RequestTiming(most_tokens=600)
    visit = one.enter(START)
    timing.on_tokens = lambda tokens: visit.charge(tokens, START)
    with pytest.raises(
        InvalidInput, match=r"601 tokens, and its API key has tokens_per_minute = 600, .*never"
    ):
        timing.count_tokens(601)
    visit.leave(400, timing.tokens or 0, START)
    assert (one.tokens, one.usage(START).refused.too_large) == (0, 1)
    served(one, 600, START)
    assert one.usage(START).refused.too_large == 1


def test_tokens_that_are_known_only_at_the_end_are_charged_then() -> None:
    """A process that forwards requests learns the tokens from the answer."""
    one = account(tokens_per_minute=600)
    visit = one.enter(START)
    visit.leave(200, 900, START)
    assert one.tokens == 900 and retry_after(one, START) == 31


def test_waiting_clients_do_not_return_together() -> None:
    for limits, longest in (({"requests_per_second": 0.05}, 31), ({"concurrent_requests": 1}, 3)):
        answers = set()
        for jitter in (0.0, 0.25, 0.5, 0.75, 0.999):
            one = account(jitter, **limits)
            one.enter(START)
            answers.add(retry_after(one, START))
        assert len(answers) >= 2 and min(answers) >= 1 and max(answers) <= longest


def test_the_refusals_of_a_loop_without_a_pause_are_delayed() -> None:
    one = account(concurrent_requests=1)
    at_once = [one.refusal_delay_s(START) for _ in range(REFUSALS_PER_S)]
    assert not any(at_once)
    later = [one.refusal_delay_s(START) for _ in range(1000)]
    assert later[0] == pytest.approx(1 / REFUSALS_PER_S) and later == sorted(later)
    assert later[-1] == MOST_DELAY_S
    assert one.refusal_delay_s(START + 3) == 0  # the delays of more refusals do not add up


def test_keys_do_not_affect_each_other() -> None:
    mine, other = account(requests_per_second=1, tokens_per_minute=100), account(requests_per_second=1)
    served(other, 10**6, START)
    for second in range(50):
        assert retry_after(other, START + second / 100) == 1
    served(mine, 100, START)
    assert mine.usage(START).refused.requests == 0


def test_a_key_without_limits_is_only_counted() -> None:
    one = account()
    for _ in range(1000):
        served(one, 10**9, START)
    assert one.usage(START).requests == 1000 and one.usage(START).requests_left is None
    assert fields_of(one, START) == {}


def test_the_fields_describe_the_limits() -> None:
    """The notation of draft-ietf-httpapi-ratelimit-headers-11."""
    one = account(requests_per_second=2, burst=10, tokens_per_minute=6000, concurrent_requests=3)
    one.enter(START).charge(4000, START)
    assert fields_of(one, START) == {
        "RateLimit-Policy": '"requests";q=10;w=5, "tokens";q=6000;qu="tokens";w=60, '
        '"concurrent";q=3;qu="concurrent-requests"',
        "RateLimit": '"requests";r=9;t=1, "tokens";r=2000;t=40, "concurrent";r=2',
    }
    one.enter(START).charge(4000, START)
    assert '"tokens";r=0;t=21' in fields_of(one, START)["RateLimit"]  # as Retry-After without its random part
    assert retry_after(one, START) == math.ceil(2001 / 100)
