"""In a container the server is a user without rights: what it may not read or write is named, with the user."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sie_server.config import ConfigError, ServerConfig, load_config
from sie_server.engine.storage import failures
from sie_server.files import check_regular, entries, read_json, refusal
from sie_server.keys import read_keys
from sie_server.templates import rendering
from sie_server.templates.rendering import RenderError, render

USER = 65_533


@pytest.fixture
def user() -> Iterator[int]:
    """Run the test as a user without rights, if the tests run as root. Root may read everything."""
    before = os.geteuid()
    if before:
        yield before
        return
    os.seteuid(USER)
    try:
        yield USER
    finally:
        os.seteuid(before)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder that every user may enter, which pytest's own folders are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize(
    "read",
    [
        lambda path: load_config({}, {}, str(path)),
        lambda path: read_keys(ServerConfig(api_keys_file=str(path))),
        read_json,
        check_regular,
    ],
    ids=["configuration", "keys", "json", "weights"],
)
def test_a_file_of_another_user(
    request: pytest.FixtureRequest, folder: Path, read: Callable[[Path], object]
) -> None:
    file = folder / "secret"
    file.write_text("{}")
    file.chmod(0)
    owner, user = file.stat().st_uid, request.getfixturevalue("user")
    with pytest.raises((ConfigError, PermissionError)) as raised:
        read(file)
    assert f"Permission denied for user {user}; owner {owner}, mode 0" in str(raised.value)
    assert str(raised.value).count(str(file)) <= 2


def test_a_folder_that_hides_the_file(request: pytest.FixtureRequest, folder: Path) -> None:
    (folder / "closed").mkdir(mode=0o700)
    (folder / "closed/config.json").write_text("{}")
    (folder / "closed").chmod(0)
    user = request.getfixturevalue("user")
    for act in (read_json, lambda path: [*entries(path.parent)]):
        with pytest.raises(PermissionError, match=f"for user {user}; owner "):
            act(folder / "closed/config.json")


def test_other_reasons_stay_as_they_are() -> None:
    assert refusal(OSError(errno.EROFS, "Read-only file system", "/cache")) == "Read-only file system"
    assert refusal(OSError("odd")) == "odd"
    denied = refusal(PermissionError(errno.EACCES, "Permission denied"))
    assert denied == f"Permission denied for user {os.geteuid()}"
    assert refusal(PermissionError(errno.EACCES, denied, "/")) == denied, "it is described once"


def test_a_missing_secret_names_what_to_check() -> None:
    with pytest.raises(
        ConfigError, match=r"/run/secrets/none: there is no such file; if it is a mounted secret"
    ):
        read_keys(ServerConfig(api_keys_file="/run/secrets/none"))


# ── the hub's cache and token ──


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(errno.EROFS, "Read-only file system", "/cache/hub"),
            "stored at '/cache/hub' (Read-only file system)",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "stored at '/cache/hub' (No space left on device)",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/none/hub"),
            f"denied for user {os.geteuid()}; owner 0",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/run/token"),
            "the token in the file '/run/token' cannot",
        ),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/run/token"), "cannot be read (Is a directory)"),
    ],
)
def test_a_download_that_cannot_be_stored(
    monkeypatch: pytest.MonkeyPatch, error: OSError, words: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/cache/hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/run/token")
    reason = failures.reason(error)
    assert words in reason and "None" not in reason
    assert ("set HF_HOME" in reason) == ("token" not in words and "Is a dir" not in words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"HF_TOKEN is not set, and the file '.*' cannot be read \(No such file or directory\)"),
        ("", r"HF_TOKEN is not set, and the file '.*' is empty"),
        ("hf_x", r"grants no access$"),
    ],
)
def test_a_private_model_without_a_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None, words: str
) -> None:
    import httpx2
    from huggingface_hub.errors import RepositoryNotFoundError

    for name in failures.TOKENS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    if content is not None:
        (tmp_path / "token").write_text(content)
    answer = httpx2.Response(401, request=httpx2.Request("GET", "https://hub.invalid"))
    error = RepositoryNotFoundError("401", response=answer)
    assert re.search(words, failures.reason(error))
    monkeypatch.setenv("HF_TOKEN", "hf_y")
    assert failures.reason(error).endswith("grants no access")


# ── no place for temporary files ──


def test_templates_need_no_temporary_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(FileNotFoundError), tempfile.TemporaryFile():
        pass
    assert render("{{ a }}.", [{"a": "no file"}]) == ["no file."]


def test_a_request_larger_than_a_pipe() -> None:
    text = "x" * 900_000
    assert render("{{ a }}", [{"a": text}, {"a": "b"}]) == [text, "b"]


def test_a_child_that_reads_nothing_holds_up_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "idle.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(rendering, "WALL_S", 0.2)
    monkeypatch.setattr(rendering, "__file__", str(tmp_path / "idle.py"))
    with pytest.raises(RenderError, match=r"does not render within 0\.2 s"):
        render("{{ a }}", [{"a": "x" * 900_001}])
