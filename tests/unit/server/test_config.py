"""Configuration: precedence of sources, errors for unknown keys and wrong values, and the catalog files."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from sie_server.catalog import catalog, id_of, known_models
from sie_server.config import ConfigError, ServerConfig, load_config
from sie_server.models.checkpoints.prompts import read_prompts


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "sie.toml"
    file.write_text('port = 1\nhost = "a"\ndevice = "cpu"\nmodel = ["x/y"]\n')
    config = load_config({"port": 3}, {"SIE_PORT": "2", "SIE_HOST": "b", "PATH": "/"}, str(file))
    assert (config.port, config.host, config.device, config.model) == (3, "b", "cpu", ("x/y",))
    assert load_config({}, {}, None) == ServerConfig()


def test_environment_values_are_text() -> None:
    config = load_config({}, {"SIE_OFFLINE": "true", "SIE_MODEL": "a/b, c=/d", "SIE_DRAIN_S": "1.5"}, None)
    assert (config.offline, config.model, config.drain_s) == (True, ("a/b", "c=/d"), 1.5)


def test_variables_of_the_client_are_ignored() -> None:
    variables = {"SIE_BASE_URL": "http://x", "SIE_API_KEY": "k", "SIE_TIMEOUT": "3"}
    assert load_config({}, variables, None) == load_config({}, {}, None)


@pytest.mark.parametrize(
    ("environment", "file", "message"),
    [
        ({"SIE_PROT": "1"}, "", r"environment: unknown option SIE_PROT; did you mean 'port'"),
        ({}, "prot = 1", r"sie\.toml: unknown option 'prot'; did you mean 'port'"),
        ({"SIE_PORT": "x"}, "", r"environment: SIE_PORT: expected an integer, got 'x'$"),
        ({"SIE_PORT": ""}, "", r"SIE_PORT: expected an integer, got ''; remove it"),
        ({"SIE_THREADS": "1.5"}, "", r"SIE_THREADS: expected an integer, got '1\.5'"),
        ({"SIE_DRAIN_S": "5s"}, "", r"SIE_DRAIN_S: expected a number, got '5s'"),
        ({"SIE_OFFLINE": "yes"}, "", r"SIE_OFFLINE: expected true or false, got 'yes'"),
        ({"SIE_LOG_LEVEL": "INFO"}, "", r"expected one of debug, info, warning, error, got 'INFO'"),
        ({}, 'dtype = "int4"', r"'dtype': expected one of auto, float32, .*'int4'"),
        ({"SIE_PORT": "70000"}, "", r"SIE_PORT.*65535"),
        ({}, 'port = "1"', r"sie\.toml: 'port'"),
        ({"SIE_DEVICE": "tpu"}, "", r"SIE_DEVICE.*tpu"),
        ({}, "port = = 1", r"cannot read.*sie\.toml"),
    ],
)
def test_a_wrong_value_is_reported_with_its_source(
    tmp_path: Path, environment: dict[str, str], file: str, message: str
) -> None:
    path = tmp_path / "sie.toml"
    path.write_text(file)
    with pytest.raises(ConfigError, match=message):
        load_config({}, environment, str(path))


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "sie.toml"
    file.write_text("port = 1", encoding="utf-8-sig")
    assert load_config({}, {}, str(file)).port == 1


def test_a_missing_file_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_config({}, {}, "nowhere.toml")


def test_the_ids_users_write_are_known() -> None:
    for name in (
        "BAAI/bge-reranker-v2-m3",
        "BAAI/bge-reranker-base",
        "BAAI/bge-reranker-large",
        "cross-encoder/ms-marco-MiniLM-L6-v2",
        "cross-encoder/ms-marco-MiniLM-L-6-v2",
        "cross-encoder/ms-marco-MiniLM-L12-v2",
        "sie/mini-en",
    ):
        assert id_of(name, catalog()) in catalog()


def test_model_values() -> None:
    models = known_models(["mine=/some/dir", "org/name"], None)
    assert (models["mine"].source, models["mine"].preload) == ("/some/dir", True)
    assert models["org/name"].source == "org/name"
    assert not models["BAAI/bge-reranker-base"].preload
    for bad in ("=x", "x="):
        with pytest.raises(ConfigError, match="ID=DIRECTORY"):
            known_models([bad], None)


def test_models_dir_finds_models_and_not_their_parts(tmp_path: Path) -> None:
    for path in ("flat", "org/name", "flat/1_Pooling"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    found = set(known_models([], str(tmp_path))) - set(catalog())
    assert found == {"flat", "org/name"}
    with pytest.raises(ConfigError, match="no such directory"):
        known_models([], str(tmp_path / "missing"))


def test_a_known_id_keeps_its_prompts_wherever_its_weights_are() -> None:
    for name in ("intfloat/multilingual-e5-base", "intfloat/multilingual-e5-base=/some/dir"):
        prompts = known_models([name], None)["intfloat/multilingual-e5-base"].prompts
        assert prompts == {"query": "query: ", "document": "passage: "}
    assert known_models(["mine=/some/dir"], None)["mine"].prompts == {}


def test_the_prompts_of_a_checkpoint_come_first(tmp_path: Path) -> None:
    known = {"query": "search: "}
    file = tmp_path / "config_sentence_transformers.json"
    assert read_prompts(tmp_path, known).of(True) == "search: "
    for silent in ("{}", '{"prompts": {}}', '{"prompts": {"query": "", "document": ""}}'):
        file.write_text(silent)
        assert read_prompts(tmp_path, known).of(True) == "search: "
    file.write_text('{"prompts": {"query": "own: "}}')
    assert (read_prompts(tmp_path, known).of(True), read_prompts(tmp_path, known).of(False)) == ("own: ", "")


@pytest.mark.parametrize("value", ["inf", "nan", "1e300", "-1"])
@pytest.mark.parametrize(
    "name", [field.name for field in msgspec.structs.fields(ServerConfig) if isinstance(field.default, float)]
)
def test_a_time_must_be_one_that_a_timer_takes(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}"):
        load_config({name: value}, {}, None)
