"""Files of checkpoints that are no files, are too large, or hold numbers and templates that would harm the server."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sie_server import files
from sie_server.engine.engine import Engine
from sie_server.engine.storage.formats.checkpoint import stored_elements
from sie_server.engine.text.loading.expansion import check_expansion
from sie_server.errors import ModelLoadFailed, cut_quotes
from sie_server.models.checkpoints.reader import read_spec
from sie_server.models.spec import UnsupportedCheckpoint
from sie_server.panics import NativePanic, catching_panics, is_panic
from sie_server.templates import rendering
from sie_server.templates.rendering import RenderError, render
from support.checkpoints.cross_encoders import make_cross_encoder
from support.checkpoints.decoders import make_decoder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_cross_encoder(tmp_path / "model", "bert", max_length=64)


def load(directory: Path) -> Engine:
    return Engine(directory, device="cpu", dtype="float32")


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(5 * 2**30)


@pytest.mark.parametrize("make", [pipe, device, folder, sparse])
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "config_sentence_transformers.json"]
)
def test_a_file_that_is_none(checkpoint: Path, name: str, make: Callable[[Path], None]) -> None:
    make(checkpoint / name)
    with pytest.raises(ModelLoadFailed, match=f"{name}.*(expected a regular file|are read)"):
        load(checkpoint)


@pytest.mark.parametrize("make", [pipe, device, folder, sparse])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"])
def test_weights_that_are_no_file(checkpoint: Path, name: str, make: Callable[[Path], None]) -> None:
    (checkpoint / "model.safetensors").unlink()
    make(checkpoint / name)
    with pytest.raises(ModelLoadFailed, match=name):
        load(checkpoint)


def test_links_to_files_are_followed(checkpoint: Path, tmp_path: Path) -> None:
    for path in list(checkpoint.iterdir()):  # as in the hub's cache
        path.rename(tmp_path / f"blob-{path.name}")
        path.symlink_to(tmp_path / f"blob-{path.name}")
    assert load(checkpoint).spec.outputs == ["score"]


@pytest.mark.parametrize("size", [2**60, 2**63, 10**6])
def test_a_safetensors_header_longer_than_the_file(checkpoint: Path, size: int) -> None:
    (checkpoint / "model.safetensors").write_bytes(size.to_bytes(8, "little") + b"{}" + b" " * 1000)
    with pytest.raises(ModelLoadFailed, match=r"model\.safetensors.*header"):
        load(checkpoint)


def test_a_bin_file_that_unpacks_to_more_than_its_size(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    path = checkpoint / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1).expand(2**40)}, path)
    with pytest.raises(UnsupportedCheckpoint, match="larger than the file"):
        stored_elements(checkpoint)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 10**7)
    with pytest.raises(UnsupportedCheckpoint, match="compressed entries"):
        stored_elements(checkpoint)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer_norm_eps", "NaN"),
        ("layer_norm_eps", "-1e-3"),
        ("layer_norm_eps", "1e400"),
        ("initializer_range", "Infinity"),
        ("hidden_size", str(2**62)),
        ("hidden_size", "48.0"),
        ("num_hidden_layers", "1000000000"),
        ("num_hidden_layers", "true"),
        ("num_attention_heads", "-4"),
        ("intermediate_size", '"144"'),
        ("max_position_embeddings", str(2**40)),
        ("vocab_size", "1" + "0" * 400),
        ("type_vocab_size", "-1"),
    ],
)
def test_numbers_of_an_encoder(checkpoint: Path, field: str, value: str) -> None:
    path = checkpoint / "config.json"
    config = json.loads(path.read_text()) | {field: "HERE"}
    path.write_text(json.dumps(config).replace('"HERE"', value))
    with pytest.raises(ModelLoadFailed, match=field):
        load(checkpoint)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"rope_parameters": None, "rope_theta": 0}, "rope_theta"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 0}}, "factor"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 10**400, "factor": 2}}, "rope_theta"),
        ({"sliding_window": -1, "use_sliding_window": True}, "sliding_window"),
        ({"head_dim": 2**31}, "head_dim"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"pad_token_id": -1}, "pad_token_id"),
        ({"pad_token_id": 10**6}, "pad_token_id"),
        ({"rms_norm_eps": [1]}, "rms_norm_eps"),
    ],
)
def test_numbers_of_a_decoder(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    directory = make_decoder(tmp_path / "model", "qwen3")
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UnsupportedCheckpoint, match=words):
        read_spec(directory, "qwen3-reranker")


def test_deep_json_is_refused(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(ModelLoadFailed, match=r"config\.json cannot be read: it is nested too deeply"):
        load(checkpoint)


def test_yaml_that_contains_itself(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("&a [*a]")
    with pytest.raises(ValueError, match="aliases expanded"):
        files.read_yaml(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}")
    assert files.read_yaml(tmp_path / "a.yaml") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}


# ── chat templates ──

LOOP = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (LOOP, "processor time"),
        ("{% set c = cycler(1, 2) %}" + LOOP.replace("%}{%", "%}{{ c.next() }}{%"), "processor time"),
        ("{% filter upper %}" + LOOP + "{% endfilter %}", "processor time"),
        ("{{ 'a' * (8e9|int) }}", "memory"),
        ("{{ '%9999999999d' % 1 }}", "memory"),
        ("{{ (range(99999)|list) * 100000 }}", "memory"),
        ("{{ 'a' * 2000000 }}", "more than 1048576 characters"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "not a valid template"),
        ("{% if %}", "not a valid template"),
        ("{{ raise_exception('no') }}", "cannot render a query and a document: no"),
        ("{{ '\\ud800' }}", "Unicode"),
    ],
)
def test_a_template_beyond_its_limits(monkeypatch: pytest.MonkeyPatch, source: str, words: str) -> None:
    monkeypatch.setattr(rendering, "CPU_S", 1)
    with pytest.raises(RenderError, match=words):
        render(source, [{"messages": []}])


def test_a_template_sees_nothing_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(rendering, "_rendered", None)  # the child has its own copy of the module
    [text, other] = render(
        "{{ a }}{% for x in b %}{{ x }}{% break %}{% endfor %}", [{"a": 1, "b": [2, 3]}, {}]
    )
    assert (text, other) == ("12", "")


def test_a_template_whose_process_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "WALL_S", 0.2)
    with pytest.raises(RenderError, match=r"does not render within 0\.2 s"):
        render("{{ 1 }}" + LOOP, [{}])


# ── panics of native libraries ──


def tokenizer(checkpoint: Path, **changes: Any) -> None:
    path = checkpoint / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_tokenizer_that_panics_while_it_is_read(checkpoint: Path) -> None:
    tokenizer(checkpoint, normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})
    with pytest.raises(ModelLoadFailed, match=r"tokenizer\.json is not a valid tokenizer: .*precompiled"):
        load(checkpoint)


REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


@pytest.mark.parametrize(
    "normalizer",
    [
        REPLACE | {"content": "b" * 1000},
        REPLACE | {"pattern": {"Regex": ""}, "content": "b" * 100},
        {"type": "Sequence", "normalizers": [REPLACE] * 7},
        {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [REPLACE] * 4}] * 2},
        {"type": "Prepend", "prepend": "b" * 10**5},
    ],
)
def test_a_normalizer_that_fills_the_memory(checkpoint: Path, normalizer: dict[str, Any]) -> None:
    tokenizer(checkpoint, normalizer=normalizer)
    with pytest.raises(ModelLoadFailed, match="64 times longer"):
        load(checkpoint)


def test_replacements_of_real_tokenizers(checkpoint: Path) -> None:
    space = REPLACE | {"pattern": {"String": " "}, "content": "▁"}
    runs = REPLACE | {"pattern": {"Regex": " {2,}"}, "content": " "}
    prepend = {"type": "Prepend", "prepend": "▁"}
    tokenizer(checkpoint, normalizer={"type": "Sequence", "normalizers": [prepend, space, runs]})
    assert load(checkpoint).spec.outputs == ["score"]


def test_token_ids_beyond_the_embedding_table(checkpoint: Path) -> None:
    content = json.loads((checkpoint / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    last = max(vocabulary, key=lambda token: vocabulary[token])
    tokenizer(checkpoint, model=content["model"] | {"vocab": vocabulary | {last: 10**6}})
    with pytest.raises(ModelLoadFailed, match="embedding table"):
        load(checkpoint)
    processor = json.dumps(content["post_processor"])
    ids = {token: entry["ids"] for token, entry in content["post_processor"]["special_tokens"].items()}
    for token, [number] in ids.items():
        processor = processor.replace(
            f'"ids": [{number}], "tokens": ["{token}"]', f'"ids": [10000], "tokens": ["{token}"]'
        )
    tokenizer(checkpoint, model=content["model"], post_processor=json.loads(processor))
    settings = checkpoint / "tokenizer_config.json"
    # the class that uses tokenizer.json as it is
    settings.write_text(
        json.dumps(json.loads(settings.read_text()) | {"tokenizer_class": "TokenizersBackend"})
    )
    with pytest.raises(ModelLoadFailed, match="embedding table"):
        load(checkpoint)


def test_a_text_that_is_no_unicode(checkpoint: Path) -> None:
    path = checkpoint / "config_sentence_transformers.json"
    path.write_text('{"prompts": {"query": "\\ud800"}}')
    with pytest.raises(
        ModelLoadFailed, match=r"config_sentence_transformers\.json cannot be read.*surrogates"
    ):
        load(checkpoint)


def test_panics_are_told_apart_from_requests_to_stop() -> None:
    class Panic(BaseException):
        pass

    def fail(error: BaseException) -> None:
        raise error

    with pytest.raises(NativePanic, match="over"):
        catching_panics(lambda: fail(Panic("over\nbacktrace")))()
    for kind in (KeyboardInterrupt, SystemExit, GeneratorExit, ValueError):
        assert not is_panic(kind())
        with pytest.raises(kind):
            catching_panics(lambda kind=kind: fail(kind()))()  # type: ignore[misc]


SPECIAL = {"id": "[CLS]", "ids": [2] * 2000, "tokens": ["[CLS]"] * 2000}
PIECES = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}] * 2000
REPLACE = {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 1000}


@pytest.mark.parametrize(
    "part",
    [
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": PIECES,
                "special_tokens": {"[CLS]": SPECIAL},
            }
        },
        {"post_processor": {"processors": [{"single": PIECES, "special_tokens": {"[CLS]": {"ids": [2]}}}]}},
        {"decoder": REPLACE},
        {"decoder": {"type": "Sequence", "decoders": [{**REPLACE, "content": "e" * 10}] * 3}},
    ],
)
def test_a_tokenizer_that_multiplies_its_additions_is_refused(part: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="not supported"):
        check_expansion(json.dumps(part).encode())


def test_ordinary_processors_and_decoders_are_accepted() -> None:
    sequence = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}]
    token = {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}
    single = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    processor = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single,
        "special_tokens": {"[CLS]": token},
    }
    file = {"decoder": {"type": "Sequence", "decoders": sequence}, "post_processor": processor}
    check_expansion(json.dumps(file).encode())


def test_a_value_of_a_file_is_quoted_only_in_part(tmp_path: Path) -> None:
    directory = make_cross_encoder(tmp_path, "bert")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "hidden_act": "x" * 10_000}))
    with pytest.raises(ModelLoadFailed) as failed:
        Engine(directory, device="cpu", dtype="float32")
    assert "'xxx" in failed.value.message and len(failed.value.message) < 1000


def test_only_quoted_values_are_cut() -> None:
    between = "which this version's loader does not know, and neither do the libraries' own loaders " * 3
    message = f"the architecture 'Unknown', {between}; pip install './packages/sie-server[compat]'"
    assert cut_quotes(message) == message
    assert cut_quotes(f"{message} '{'x' * 500}'") == f"{message} '{'x' * 80}…'"
