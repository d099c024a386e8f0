"""The models directory: checkpoints and catalog files, reports of invalid ones, and when a change takes effect."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
import yaml

from sie_server import files
from sie_server.catalog import (
    ModelConfig,
    ModelsDirectory,
    catalog,
    configured_adapters,
    id_problem,
    known_models,
    with_configured,
)
from sie_server.config import ConfigError
from sie_server.serving.operators.watcher import LONGEST_RETRY_S, RETRY_S, next_pause, settled


def write(path: Path, **changes: object) -> None:
    entry = {
        "id": "my/model",
        "source": "weights",
        "license": "mit",
        "description": "mine",
        "outputs": ["score"],
        "max_seq_length": 64,
    }
    path.write_text(yaml.safe_dump(entry | changes))


def test_a_file_names_a_directory_next_to_it_or_a_hub_id(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    write(tmp_path / "a.yaml", aliases=["short"])
    write(tmp_path / "b.yaml", id="hub", source="org/name", revision="v1")
    models = ModelsDirectory(str(tmp_path)).scan()
    assert set(models) == {"my/model", "hub"} and models["my/model"].aliases == ("short",)
    assert models["my/model"].source == str(tmp_path / "weights")
    assert (models["hub"].source, models["hub"].revision) == ("org/name", "v1")
    assert models["hub"].max_seq_length == 64


def test_a_file_needs_an_id_and_a_source(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("{id: my/model, source: org/name, aliases: [short]}")
    model = ModelsDirectory(str(tmp_path)).scan()["my/model"]
    assert (model.source, model.max_seq_length, model.aliases) == ("org/name", None, ("short",))


def test_a_file_for_an_id_of_the_catalog_has_only_what_differs(tmp_path: Path) -> None:
    text = "{id: BAAI/bge-reranker-v2-m3, aliases: [rerank-v3.5], profiles: {short: {max_seq_length: 64}}}"
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.yaml").write_text("{id: sie/mini-en, calibration: null}")
    known = catalog()
    models = known_models([], str(tmp_path))
    ours, theirs = models["BAAI/bge-reranker-v2-m3"], known["BAAI/bge-reranker-v2-m3"]
    assert (ours.source, ours.max_seq_length, ours.truncation) == (theirs.source, 1024, "query-first")
    assert ours.aliases == (*theirs.aliases, "rerank-v3.5") and set(ours.profiles) == {"long", "short"}
    assert known["sie/mini-en"].calibration and models["sie/mini-en"].calibration is None
    assert models["sie/mini-en"].source == known["sie/mini-en"].source
    assert catalog() == known  # the file changes no entry of the package
    (tmp_path / "b.yaml").write_text("{id: sie/mini-en, source: org/other}")
    other = known_models([], str(tmp_path))["sie/mini-en"]
    assert (other.source, other.max_seq_length, other.calibration) == ("org/other", None, None)


def test_a_file_for_an_id_of_the_catalog_leaves_the_weights_in_the_directory(tmp_path: Path) -> None:
    for name in ("sie/mini-en", "BAAI/bge-reranker-base"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / f"{name.replace('/', '--')}.yaml").write_text(f"{{id: {name}, aliases: [{name[-4:]}]}}")
    models = ModelsDirectory(str(tmp_path)).scan()
    for name in ("sie/mini-en", "BAAI/bge-reranker-base"):
        assert models[name].source == str(tmp_path / name) and models[name].stamp
        assert (
            models[name].aliases == (name[-4:],)
            and models[name].max_seq_length == catalog()[name].max_seq_length
        )


def test_entries_of_the_package_describe_their_models() -> None:
    for model in catalog().values():
        if entry := model.entry:
            assert entry.license and entry.description and entry.outputs and entry.max_seq_length, entry.id


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("id: [", "expected"),
        ("- 1", "object"),
        ("id: x", "missing required field `source`"),
        ("source: x", "missing required field `id`"),
        ("id: [sie/mini-en]", "Expected `str`, got `array` - at `$.id`"),
        ("{id: sie/mini-en, aliases: short}", "Expected `array`, got `str` - at `$.aliases`"),
        ({"wrong": 1}, "wrong"),
        ({"adapters": {"../a": "org/name"}}, "$.adapters"),
        ({"adapters": {"a\n": "org/name"}}, "$.adapters"),
        ({"max_seq_length": 4}, ">= 8"),
        ({"id": "../etc"}, "dots"),
        ({"aliases": ["a\nb"]}, "characters"),
        ("[" * 20000, "nested too deeply"),
        ("!!int ''", "cannot be read"),
    ],
)
def test_an_invalid_file_is_reported_once_and_its_last_valid_content_stays(
    tmp_path: Path, content: str | dict[str, object], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.yaml"
    write(path)
    directory = ModelsDirectory(str(tmp_path))
    good = directory.scan()
    if isinstance(content, dict):
        write(path, **content)
    else:
        path.write_text(content)
    with caplog.at_level(logging.WARNING):
        assert directory.scan() == directory.scan() == good
    assert len(caplog.records) == 1
    assert "a.yaml" in caplog.text and words in caplog.text and words in directory.problems["a.yaml"]
    path.unlink()
    assert directory.scan() == {} and directory.problems == {}


def test_a_package_that_is_not_installed_is_looked_for_and_not_imported(tmp_path: Path) -> None:
    for name in ("nosuch.pkg/foo", "xml.nosuch/foo", ".pkg/foo", "nosuch"):
        write(tmp_path / "a.yaml", package=name)
        directory = ModelsDirectory(str(tmp_path))
        assert directory.scan()["my/model"].source == "weights"
        assert directory.problems == {}


def test_adapters_may_be_directories_next_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "french").mkdir()
    adapters = {"a": "french", "b": "./later", "c": "org/name", "d": "/elsewhere"}
    write(tmp_path / "a.yaml", adapters=adapters)
    entry = ModelsDirectory(str(tmp_path)).scan()["my/model"].entry
    assert entry is not None
    assert entry.adapters == {
        "a": str(tmp_path / "french"),
        "b": str(tmp_path / "later"),
        "c": "org/name",
        "d": "/elsewhere",
    }


def test_hidden_directories_are_skipped_and_invalid_names_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (".hid", "org/.tmp", "we:ird", "m[red]x", "good"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    write(tmp_path / "._copy.yaml")
    directory = ModelsDirectory(str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert set(directory.scan()) == set(directory.scan()) == {"good"}
    assert set(directory.problems) == {"we:ird", "m[red]x"}
    assert len(caplog.records) == 2 and "'we:ird' has characters" in caplog.text


def test_reports_can_be_switched_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.yaml").write_text("id: [")
    known_models([], str(tmp_path), report=False)
    assert not caplog.records
    known_models([], str(tmp_path))
    assert len(caplog.records) == 1


def test_an_id_that_left_the_directory_never_means_something_else() -> None:
    first = {name: ModelConfig(name, "/models") for name in ("mine", "sie/mini-en")}
    configured = ("mine", "sie/mini-en", "org/hub", "moved=/elsewhere")
    assert with_configured(configured, first, first)["mine"] == ModelConfig("mine", "/models", preload=True)
    later = with_configured(configured, {}, first)
    assert not later.keys() & first.keys()
    assert (later["org/hub"].source, later["moved"].source) == ("org/hub", "/elsewhere")
    assert with_configured(configured, first, first).keys() >= first.keys()  # the id is back in the directory
    assert with_configured(["mine"], {})["mine"].source == "mine"  # at the first scan it may be a Hub id


def test_one_id_in_two_files(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", source="org/first")
    write(tmp_path / "b.yaml", source="org/second")
    directory = ModelsDirectory(str(tmp_path))
    assert directory.scan()["my/model"].source == "org/first"
    assert "another file" in directory.problems["b.yaml"]


def test_files_of_a_checkpoint_change_its_model(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text("{}")
    directory = ModelsDirectory(str(tmp_path))
    first = directory.scan()
    assert directory.scan() == first
    os.utime(tmp_path / "m/config.json", ns=(1, 1))
    second = directory.scan()
    assert second != first
    (tmp_path / "m/model.safetensors").write_bytes(b"x")
    assert directory.scan() != second


def test_a_removed_directory_is_an_error_and_not_empty(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    directory = ModelsDirectory(str(tmp_path / "models"))
    (tmp_path / "models").rmdir()
    with pytest.raises(OSError, match="models"):
        directory.scan()


def checkpoint(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def replace_by_empty(path: Path) -> Path:
    """Do what unmounting a volume does to its mount point."""
    aside = path.with_name(f".{path.name}-aside")
    path.rename(aside)
    (path.parent / ".filler").mkdir(exist_ok=True)  # the number of the removed folder is not used again
    path.mkdir()
    return aside


@pytest.mark.parametrize("where", ["", "org", "org/b"])
def test_a_volume_that_is_not_mounted_removes_no_model(
    where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "models"
    for name in ("a", "org/b", "org/c"):
        checkpoint(root / name)
    directory = ModelsDirectory(str(root))
    first = directory.scan()
    assert set(first) == {"a", "org/b", "org/c"}
    aside = replace_by_empty(root / where)
    if not where:
        with pytest.raises(OSError, match="is its volume mounted"):
            directory.scan()
    else:
        assert directory.scan() == first == directory.scan()
        assert [f"{root / where} stays as it was" in line for line in caplog.messages] == [True]
    (root / where).rmdir()
    aside.rename(root / where)
    assert directory.scan() == first


def test_a_link_to_nothing_and_an_unreadable_folder_remove_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, volume = tmp_path / "models", tmp_path / "volume"
    checkpoint(root / "a"), checkpoint(volume / "b")
    (root / "b").symlink_to(volume / "b")
    directory = ModelsDirectory(str(root))
    first = directory.scan()
    assert set(first) == {"a", "b"}
    volume.rename(tmp_path / "away")
    assert directory.scan() == first
    assert directory.problems == {"b": "it is a link to a folder that does not exist"}
    (tmp_path / "away").rename(volume)

    def stale(path: Path, limit: int = files.ENTRIES) -> list[os.DirEntry[str]]:
        if path.name == "a":
            raise OSError(116, "Stale file handle", str(path))
        return files.entries(path, limit)

    monkeypatch.setattr("sie_server.catalog.directory.entries", stale)
    assert directory.scan() == first
    assert "Stale" in directory.problems["a"]


def test_the_source_of_a_file_that_is_not_there_changes_nothing(tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "weights")
    root = tmp_path / "models"
    root.mkdir()
    write(root / "m.yaml", source=str(weights))
    directory = ModelsDirectory(str(root))
    first = directory.scan()
    weights.rename(tmp_path / "away")
    assert directory.scan() == first == directory.scan()
    assert "does not exist" in directory.problems["m.yaml"]


def test_removed_models_are_removed(tmp_path: Path) -> None:
    for name in ("a", "org/b", "org/c"):
        checkpoint(tmp_path / name)
    directory = ModelsDirectory(str(tmp_path))
    directory.scan()
    for name, left in (("org/b", {"a", "org/c"}), ("org/c", {"a"}), ("a", set())):
        shutil.rmtree(tmp_path / name)
        assert set(directory.scan()) == left


def test_a_change_counts_when_two_scans_agree() -> None:
    old, new = {"m": ModelConfig("m", "old")}, {"m": ModelConfig("m", "new")}
    assert not settled("m", old, old, old)
    assert not settled("m", old, old, new) and settled("m", old, new, new)
    assert not settled("m", old, old, {}) and settled("m", old, {}, {})
    assert not settled("m", {}, {}, new) and settled("m", {}, new, new)


def test_a_failed_change_is_retried_with_increasing_pauses() -> None:
    pauses = [next_pause(None)]
    while pauses[-1] < LONGEST_RETRY_S:
        pauses.append(next_pause(pauses[-1]))
    assert pauses[:3] == [RETRY_S, 2 * RETRY_S, 4 * RETRY_S]
    assert next_pause(LONGEST_RETRY_S) == LONGEST_RETRY_S


def test_ids() -> None:
    for good in [*catalog(), "a", "org/name", "org/sub/name", "naïve model@v1.0"]:
        assert id_problem(good) is None
    for bad in [
        "",
        "/a",
        "a/",
        "a//b",
        "..",
        "a/../b",
        "./a",
        "a\nb",
        "a\0",
        "a:b",
        "a\\b",
        "x" * 201,
        "a/ /b",
    ]:
        assert id_problem(bad), bad


def test_an_alias_and_its_id_are_one_model(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", aliases=["short"])
    for value in ("short", "my/model", f"short={tmp_path}", f"my/model={tmp_path}"):
        models = known_models([value], str(tmp_path))
        assert models["my/model"].preload and "short" not in models, value
    assert known_models([f"short={tmp_path}"], str(tmp_path))["my/model"].source == str(tmp_path)
    with pytest.raises(ConfigError, match="names the same model"):
        known_models([f"short={tmp_path}", "my/model"], str(tmp_path))
    models = known_models([], str(tmp_path))
    assert configured_adapters(["short:laws=a/b"], models) == {"my/model": {"laws": "a/b"}}


def test_an_id_comes_before_an_alias(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", aliases=["short"])
    (tmp_path / "short").mkdir()
    (tmp_path / "short/config.json").write_text("{}")
    models = known_models(["short"], str(tmp_path))
    assert models["short"].preload and not models["my/model"].preload


def test_two_files_with_the_same_alias(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", aliases=["short"])
    write(tmp_path / "b.yaml", id="other", aliases=["short"])
    directory = ModelsDirectory(str(tmp_path))
    assert set(directory.scan()) == {"my/model"}
    assert "another file has the id 'short'" in directory.problems["b.yaml"]


def test_a_scan_survives_files_that_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("good", "pipe", "zero", "huge", "many", "folder"):
        (tmp_path / name).mkdir()
    (tmp_path / "good/config.json").write_text("{}")
    os.mkfifo(tmp_path / "pipe/config.json")
    (tmp_path / "zero/config.json").symlink_to("/dev/zero")
    with (tmp_path / "huge/config.json").open("wb") as file:
        file.truncate(5 * 2**30)
    (tmp_path / "folder/config.json").mkdir()
    (tmp_path / "many/config.json").write_text("{}")
    for i in range(files.ENTRIES):
        (tmp_path / "many" / str(i)).touch()
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "bomb.yaml").write_text(bomb())
    (tmp_path / "half.yaml").write_text('id: "\\ud800"')
    (tmp_path / "new\nline").mkdir()
    (tmp_path / "new\nline/config.json").write_text("{}")
    directory = ModelsDirectory(str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert set(directory.scan()) == set(directory.scan()) == {"good"}
    assert len(caplog.records) == len(directory.problems) == 10
    assert not any("\n" in record.getMessage() for record in caplog.records)
    assert directory.problems["pipe"] == "config.json is a named pipe; expected a regular file"
    assert "a device" in directory.problems["zero"] and "8 MiB" in directory.problems["huge"]
    assert "10000 entries" in directory.problems["many"]
    assert "aliases expanded" in directory.problems["bomb.yaml"]


def bomb() -> str:
    """Return YAML whose aliases expand to 9 ** 9 values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    return "\n".join(lines + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)])


def test_every_source_of_a_known_id_has_the_rules_of_the_catalog(tmp_path: Path) -> None:
    directory = tmp_path / "BAAI" / "bge-reranker-base"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    watched = known_models((), str(tmp_path))["BAAI/bge-reranker-base"]
    assert watched.source == str(directory) and watched.stamp and watched.revision is None
    named = known_models((f"BAAI/bge-reranker-base={directory}",), None)["BAAI/bge-reranker-base"]
    for model in (watched, named, catalog()["BAAI/bge-reranker-base"]):
        assert model.truncation == "query-first" and model.max_seq_length == 512
    other = known_models((f"mine={directory}",), None)["mine"]
    assert other.truncation is None and other.max_seq_length is None
    write(tmp_path / "own.yaml", id="BAAI/bge-reranker-base", source=str(directory))
    assert known_models((), str(tmp_path))["BAAI/bge-reranker-base"].truncation is None
