"""ID@REVISION on the command line and in YAML files; paths and ids with an `@` keep their meaning."""

from __future__ import annotations

from pathlib import Path

import pytest

from sie_server.catalog import ModelsDirectory, known_models, named_model
from sie_server.catalog.revisions import split_revision
from sie_server.config import ConfigError
from sie_server.engine.storage.source import fetch
from sie_server.errors import ModelLoadFailed


@pytest.mark.parametrize(
    ("value", "name", "source", "revision"),
    [
        ("org/new@v1.0", "org/new", "org/new", "v1.0"),
        ("org/new@refs/pr/5", "org/new", "org/new", "refs/pr/5"),
        ("mine=org/new@4d7a", "mine", "org/new", "4d7a"),
        ("mine@x=org/new@main", "mine@x", "org/new", "main"),
        ("BAAI/bge-reranker-base@main", "BAAI/bge-reranker-base", "BAAI/bge-reranker-base", "main"),
        ("mine=org/new", "mine", "org/new", None),
        ("mine=/models/a@b", "mine", "/models/a@b", None),
        ("mine=./a@b", "mine", "./a@b", None),
        ("mine=~/a@b", "mine", "~/a@b", None),
    ],
)
def test_a_value_of_model(value: str, name: str, source: str, revision: str | None) -> None:
    model = named_model(value)
    assert (model.id, model.source, model.revision) == (name, source, revision)


def test_a_known_model_keeps_its_template_at_a_revision() -> None:
    assert named_model("Qwen/Qwen3-Reranker-0.6B@v2").template == "qwen3-reranker"


def test_an_existing_directory_with_an_at_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org@v1").mkdir()
    monkeypatch.chdir(tmp_path)
    assert split_revision("org@v1") == ("org@v1", None)
    assert named_model("mine=org@v1").source == "org@v1"


def test_an_id_of_the_models_directory_may_have_an_at(tmp_path: Path) -> None:
    (tmp_path / "rank@v1").mkdir()
    (tmp_path / "rank@v1/config.json").write_text("{}")
    model = known_models(("rank@v1",), str(tmp_path))["rank@v1"]
    assert model.preload and model.revision is None


def test_a_yaml_file_names_a_revision_in_either_place(tmp_path: Path) -> None:
    entry = "id: m/{0}\nsource: {1}\nlicense: MIT\ndescription: d\noutputs: [score]\nmax_seq_length: 512\n"
    (tmp_path / "a.yaml").write_text(entry.format("a", "org/a@v1"))
    (tmp_path / "b.yaml").write_text(entry.format("b", "org/b") + "revision: v2\n")
    (tmp_path / "c.yaml").write_text(entry.format("c", "org/c@v1") + "revision: v2\n")
    directory = ModelsDirectory(str(tmp_path))
    found = directory.scan()
    assert {name: (m.source, m.revision) for name, m in found.items()} == {
        "m/a": ("org/a", "v1"),
        "m/b": ("org/b", "v2"),
    }
    assert "keep one" in directory.problems["c.yaml"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("org/new@", "no revision after the @"),
        ("sie/mini-en@v1", "served from a directory, which has no revisions"),
    ],
)
def test_a_revision_that_cannot_be_is_refused(value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        named_model(value)


@pytest.mark.parametrize("source", ["models/gone", "a/b/c", "org/new@v9"])
def test_a_missing_model_says_where_a_revision_and_a_directory_go(source: str) -> None:
    with pytest.raises(ModelLoadFailed, match=r"--model ID@REVISION.*relative directory in a YAML file"):
        fetch(source, revision=None, offline=True)


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("sie/mini-em", "; did you mean 'sie/mini-en'? For"),
        ("BAAI/bge-reranker-v2-M2", "; did you mean 'BAAI/bge-reranker-v2-m3'"),
        ("BAAI/bge-m3", "offline mode is on. For"),  # a known id needs none
        ("acme/private", "offline mode is on. For"),
    ],
)
def test_an_id_that_is_nearly_one_of_the_catalog_is_answered_with_it(source: str, hint: str) -> None:
    with pytest.raises(ModelLoadFailed) as caught:
        fetch(source, revision=None, offline=True)
    assert hint in caught.value.message
