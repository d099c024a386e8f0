"""The hub's cache without the hub: which snapshot serves, and which file is named. The caches are written by hand."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from sie_server.engine.storage.cache import CachedRepository
from sie_server.engine.storage.integrity import PIECE, Expected, damages
from sie_server.engine.storage.source import fetch
from sie_server.engine.storage.tally import LoadStopped, Tally
from sie_server.errors import ModelLoadFailed

OLD, NEW, PINNED = "a" * 40, "b" * 40, "c" * 40
SHARDS = {f"model-0000{i}-of-00002.safetensors": f"shard {i}".encode() for i in (1, 2)}
INDEX = json.dumps({"weight_map": {name: name for name in SHARDS}}).encode()
FILES = {"config.json": b"{}", "tokenizer.json": b"[]", "model.safetensors.index.json": INDEX, **SHARDS}
MODULES = {"modules.json": b"[0]", "1_Pooling/config.json": b"{1}", "2_Dense/model.safetensors": b"dense"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path / "models--org--model"


def store(folder: Path, commit: str, files: dict[str, bytes], when: int = 1, *, mirror: bool = False) -> Path:
    """Write a snapshot with a link for every file, last changed at `when`."""
    snapshot = folder / "snapshots" / commit
    for name, content in files.items():
        large = hashlib.sha256(content).hexdigest()
        small = hashlib.sha1(content if mirror else b"blob %d\0" % len(content) + content).hexdigest()
        blob = folder / "blobs" / (large if name.endswith(".safetensors") else small)
        link = snapshot / name
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(os.path.relpath(blob, link.parent))
    os.utime(snapshot, (when, when))
    return snapshot


def refer(folder: Path, name: str, commit: str) -> None:
    path = folder / "refs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(commit)


def served(revision: str | None = None, tally: Tally | None = None) -> str:
    return fetch("org/model", revision=revision, offline=True, tally=tally).name


@pytest.mark.parametrize("name", [*FILES, *MODULES])
@pytest.mark.parametrize("spoil", [lambda content: content[:-1] + b"?", lambda content: b"", None])
def test_a_damaged_file_is_named(folder: Path, name: str, spoil: object) -> None:
    """Files that are compared by their hashes, those of shards and modules included."""
    snapshot = store(folder, NEW, {**FILES, **MODULES})
    refer(folder, "main", NEW)
    assert served() == NEW
    blob = (snapshot / name).resolve()
    if callable(spoil):
        blob.write_bytes(spoil(blob.read_bytes()))
    else:
        blob.unlink()
    with pytest.raises(ModelLoadFailed) as caught:
        served()
    assert f"damaged in the hub's cache: {name} " in caught.value.message
    assert (f"Delete the file {blob}" in caught.value.message) == callable(spoil)
    assert not caught.value.details["permanent"]


@pytest.mark.parametrize("gone", ["config.json", "model-00002-of-00002.safetensors"])
def test_a_file_that_the_others_name_is_missed_without_a_listing(folder: Path, gone: str) -> None:
    (store(folder, NEW, FILES) / gone).unlink()
    refer(folder, "main", NEW)
    with pytest.raises(ModelLoadFailed, match=f"{gone} is missing"):
        served()


def test_the_version_before_an_interrupted_update_serves(folder: Path) -> None:
    store(folder, OLD, FILES, when=1)
    store(folder, NEW, {"config.json": b"{2}"}, when=3)
    store(folder, PINNED, {**FILES, "config.json": b"{3}"}, when=2)
    refer(folder, "experiments/one", PINNED)
    refer(folder, "main", NEW)
    tally = Tally()
    assert served(tally=tally) == OLD  # a newer complete version is another branch
    assert NEW in str(tally.warning) and OLD in str(tally.warning)
    assert served("experiments/one") == served(PINNED) == PINNED
    for revision in (NEW, "main", "v3", "../refs/main"):
        with pytest.raises(ModelLoadFailed):
            served(revision)


def test_a_complete_version_is_not_replaced_by_a_newer_one_that_was_pinned(folder: Path) -> None:
    store(folder, OLD, FILES, when=1)
    snapshot = store(folder, NEW, {**FILES, "config.json": b"{2}"}, when=2)
    store(folder, PINNED, {**FILES, "config.json": b"{3}"}, when=3)
    refer(folder, "main", NEW)
    tally = Tally()
    assert served(tally=tally) == NEW and tally.warning is None
    (snapshot / "config.json").resolve().write_bytes(b"{4}")
    with pytest.raises(ModelLoadFailed, match=r"config\.json has another content than its hash says"):
        served()


@pytest.mark.parametrize("revision", ["../outside", "/tmp/outside", "a/../../outside"])
def test_a_revision_is_read_and_recorded_below_refs_only(folder: Path, revision: str) -> None:
    store(folder, NEW, FILES)
    refer(folder, "main", NEW)
    (folder / "outside").write_text(NEW)
    repository = CachedRepository("org/model")
    repository.record(revision, OLD)
    assert repository.commits(revision) == [] and (folder / "outside").read_text() == NEW
    repository.record("refs/pr/1", OLD)
    assert (folder / "refs/refs/pr/1").read_text() == OLD


@pytest.mark.parametrize("content", ["", "b" * 39, "\0" * 40, "not a commit", "d" * 40])
def test_a_damaged_reference_leaves_the_newest_complete_version(folder: Path, content: str) -> None:
    store(folder, OLD, FILES, when=1)
    store(folder, NEW, {**FILES, "config.json": b"{2}"}, when=2)
    refer(folder, "main", content)
    assert served() == NEW


def test_names_of_mirrors_are_hashes_of_other_kinds_or_no_hashes(folder: Path) -> None:
    snapshot = store(folder, NEW, {**FILES, "model.safetensors": b"all"}, mirror=True)
    refer(folder, "main", NEW)
    odd = folder / "blobs/W-123"
    (snapshot / "config.json").resolve().rename(odd)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../blobs/W-123")
    assert served() == NEW
    (snapshot / "tokenizer.json").resolve().write_bytes(b"[1]")
    with pytest.raises(ModelLoadFailed, match=r"tokenizer\.json has another content"):
        served()


def test_a_listing_names_sizes_and_hashes_of_a_cache_that_was_copied(folder: Path) -> None:
    weights = b"weights"
    snapshot = folder / "snapshots" / NEW
    snapshot.mkdir(parents=True)
    listed = {}
    for name, content in {
        "config.json": b"{}",
        "tokenizer.json": b"[]",
        "model.safetensors": weights,
    }.items():
        (snapshot / name).write_bytes(content)
        listed[name] = {
            "size": len(content),
            "blob_id": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
        }
    listed["model.safetensors"] |= {"blob_id": "f" * 40, "lfs_sha256": hashlib.sha256(weights).hexdigest()}
    listing = folder / f"trees/{NEW}.json"
    listing.parent.mkdir()
    listing.write_text(json.dumps({"format_version": 1, "files": listed}))
    refer(folder, "main", NEW)
    assert served() == NEW
    (snapshot / "model.safetensors").write_bytes(b"weightz")
    with pytest.raises(ModelLoadFailed, match=r"model\.safetensors has another content"):
        served()
    (snapshot / "model.safetensors").write_bytes(b"weight")
    with pytest.raises(ModelLoadFailed, match=r"model\.safetensors has 6 bytes instead of 7"):
        served()
    listing.write_text('{"files": []}')  # a listing that cannot be read is as none
    assert served() == NEW


def test_a_file_is_hashed_once_until_it_changes(tmp_path: Path) -> None:
    path, content = tmp_path / "model.safetensors", bytes(PIECE + 1)
    path.write_bytes(content)
    files, tally = {path.name: Expected(len(content), (hashlib.sha256(content).hexdigest(),))}, Tally()
    for _ in range(2):
        assert damages(tmp_path, files, tally) == [] and tally.checked == len(content)
    with path.open("r+b") as file:
        file.write(b"1")
    assert [damage.name for damage in damages(tmp_path, files, tally)] == [path.name]
    tally.stopped = True
    with pytest.raises(LoadStopped):
        damages(tmp_path, files, tally)


@pytest.mark.parametrize("cache", ["~/.cache/huggingface/hub", "~nobody-here/hub"])
def test_without_a_home_the_refusal_names_the_setting(monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
    """The library would make a folder `~` where the server runs. `~NAME` of an unknown user is not replaced either."""
    monkeypatch.setenv(
        "HOME", "~"
    )  # as `expanduser` leaves it where neither HOME nor the user's entry exists
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", cache)
    with pytest.raises(ModelLoadFailed, match="no home directory; set HF_HOME") as raised:
        served()
    assert raised.value.details["error_class"] == "NoCache"
