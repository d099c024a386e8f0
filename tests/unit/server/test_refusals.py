"""Refusals of a checkpoint name what was found instead, and the next step."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sie_server.catalog import ModelsDirectory
from sie_server.engine.engine import Engine
from sie_server.engine.storage.source import fetch
from sie_server.errors import ModelLoadFailed
from support.checkpoints.cross_encoders import make_cross_encoder

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 438012\n"
WEIGHTS, NONE = "model.safetensors", "neither model.safetensors nor pytorch_model.bin"
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cross_encoder(tmp_path_factory.mktemp("original") / "model", "bert", max_length=64)


@pytest.fixture
def checkpoint(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def refusal(directory: Path) -> str:
    with pytest.raises(ModelLoadFailed) as caught:
        Engine(fetch(str(directory), revision=None, offline=True), device="cpu", dtype="float32")
    return caught.value.message


def config(**fields: Any) -> Change:
    def change(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def text(name: str, content: str) -> Change:
    return lambda directory: (directory / name).write_text(content)


def names(rename: Callable[[str], str]) -> Change:
    def change(directory: Path) -> None:
        path = directory / WEIGHTS
        save_file({rename(name): tensor for name, tensor in load_file(path).items()}, path)

    return change


def quantised(suffix: str, dtype: torch.dtype = torch.int8) -> Change:
    """Replace a layer's weight with the tensors of a quantised checkpoint."""
    name = "bert.encoder.layer.0.attention.self.query"

    def change(directory: Path) -> None:
        tensors = load_file(directory / WEIGHTS)
        tensors[f"{name}.{suffix}"] = torch.ones(4)
        if dtype == torch.int8:
            del tensors[f"{name}.weight"]
        save_file(tensors, directory / WEIGHTS)

    return change


def instead(*files: str) -> Change:
    """Keep no weights, and add files under other names."""

    def change(directory: Path) -> None:
        (directory / WEIGHTS).unlink()
        for name in files:
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_bytes(b"x")

    return change


def legacy(directory: Path) -> None:
    tensors = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    torch.save(tensors, directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def only(name: str, content: Any) -> Change:
    """Keep nothing but one JSON file."""

    def change(directory: Path) -> None:
        shutil.rmtree(directory)
        directory.mkdir()
        (directory / name).write_text(json.dumps(content))

    return change


def modules(*kinds: str) -> Change:
    return only(
        "modules.json", [{"type": f"sentence_transformers.models.{kind}", "path": ""} for kind in kinds]
    )


def into(folder: str) -> Change:
    """Move everything into a folder, as sentence-transformers 0 and 1 saved it."""

    def change(directory: Path) -> None:
        files = list(directory.iterdir())
        (directory / folder).mkdir()
        for path in files:
            path.rename(directory / folder / path.name)
        module = {"type": "sentence_transformers.models.Transformer", "path": folder}
        (directory / "modules.json").write_text(json.dumps([module]))

    return change


def two_models(directory: Path) -> None:
    """Have one model next to modules.json, and name the folder of another one in it."""
    shutil.copytree(directory, directory.parent / "0_Transformer")
    (directory.parent / "0_Transformer").rename(directory / "0_Transformer")
    embedder("Transformer", "Pooling", path="0_Transformer")(directory)


def embedder(*kinds: str, path: str = "") -> Change:
    """Add modules.json; a kind without a package is one of sentence-transformers."""

    def change(directory: Path) -> None:
        (directory / "1_Pooling").mkdir()
        (directory / "1_Pooling/config.json").write_text("{}")
        paths = {"Transformer": path, "Pooling": "1_Pooling"}
        listed = [
            {
                "type": kind if "." in kind else f"sentence_transformers.models.{kind}",
                "path": paths.get(kind, ""),
            }
            for kind in kinds
        ]
        (directory / "modules.json").write_text(json.dumps(listed))

    return change


def nothing(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


CASES: dict[str, tuple[Change, str]] = {
    # remains of failed downloads
    "LFS, weights": (text(WEIGHTS, LFS), "model.safetensors is a Git LFS pointer.*git lfs pull"),
    "LFS, tokenizer": (text("tokenizer.json", LFS), "tokenizer.json is a Git LFS pointer.*git lfs pull"),
    "LFS, config": (text("config.json", LFS), "config.json is a Git LFS pointer.*git lfs pull"),
    "a page": (text("config.json", "\n<!DOCTYPE html><html>"), "is an HTML page.*download it again"),
    "a page as weights": (text(WEIGHTS, "<html>403</html>"), "is an HTML page.*download it again"),
    "the hub's answer": (text("tokenizer.json", "Entry not found"), "is an answer of the hub"),
    "an empty file": (text("config.json", ""), "config.json cannot be read: the file is empty; download"),
    "an empty directory": (nothing, "is empty; put a checkpoint into it"),
    "a shard": (instead("model-00001-of-00002.safetensors"), "without model.safetensors.index.json"),
    # quantised
    "GPTQ": (
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        r"gptq \(4 bits\).*unquantised",
    ),
    "fp8": (
        config(quantization_config={"quant_method": "compressed-tensors"}),
        "with compressed-tensors.*unq",
    ),
    "bnb": (config(quantization_config={"load_in_8bit": True}), r"bitsandbytes \(8 bits\).*unquantised"),
    "a nested one": (config(text_config={"quantization_config": {"quant_method": "awq"}}), "with awq"),
    "names of GPTQ": (quantised("qweight"), r"qweight' shows that.*GPTQ or AWQ.*unquantised"),
    "names of bnb": (quantised("SCB"), r"SCB' shows that.*bitsandbytes.*unquantised"),
    "names of fp8": (quantised("weight_scale", torch.float32), "not use.*compressed-tensors.*unquantised"),
    # other formats
    "onnx": (instead("onnx/model.onnx"), f"{NONE}; it has onnx/model.onnx \\(ONNX\\).*original"),
    "gguf": (
        instead("model-q4.gguf"),
        "model-q4.gguf \\(GGUF, the format of llama.cpp\\), which is not read",
    ),
    "tensorflow": (instead("tf_model.h5"), "tf_model.h5 \\(TensorFlow\\)"),
    "flax": (instead("flax_model.msgpack"), "flax_model.msgpack \\(Flax\\)"),
    "variant": (instead("model.fp16.safetensors"), "model.fp16.safetensors.*rename it to model.safetensors"),
    "torch before 1.6": (legacy, "format of torch before 1.6; save it again"),
    "a name of one's own": (instead("reranker.safetensors"), "it has .*reranker.safetensors.*rename"),
    # adapters and layouts
    "LoRA": (
        only("adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "org/base"}),
        "LoRA adapter of org/base.*--model org/base --adapter org/base:NAME=/",
    ),
    "prompt tuning": (
        only("adapter_config.json", {"peft_type": "PROMPT_TUNING", "base_model_name_or_path": "org/base"}),
        "PEFT adapter of the type 'PROMPT_TUNING' for org/base; only LoRA",
    ),
    "diffusers": (only("model_index.json", {}), "diffusers pipeline"),
    "0_Transformer": (
        into("0_Transformer"),
        "its transformer is in 0_Transformer/.*move the files.*one level up",
    ),
    "0_XLMRoberta": (into("0_BERT"), "its transformer is in 0_BERT/"),
    "static": (modules("StaticEmbedding"), "StaticEmbedding: a static model: one vector per token"),
    "router": (modules("Router"), "Router: a model with a module of its own for queries"),
    "inference-free": (modules("SparseStaticEmbedding"), "an inference-free sparse model"),
    "bag of words": (modules("BoW", "Dense"), "BoW: a bag-of-words model"),
    "words": (modules("WordEmbeddings", "Pooling"), "WordEmbeddings: a word-embedding model"),
    "clip": (modules("CLIPModel"), "CLIPModel: a CLIP model for images and texts"),
    "the hub's cache": (
        lambda d: [nothing(d), (d / "snapshots").mkdir(), (d / "refs").mkdir()],
        "folder of the hub's cache.*snapshots/COMMIT",
    ),
    "two models": (two_models, "path of Transformer is '0_Transformer', but.*Move the files"),
    "a pooling of its own": (embedder("Transformer", "mine.Pooling"), "'mine.Pooling', a class of the repo"),
    "Normalize first": (embedder("Transformer", "Normalize", "Pooling"), "Normalize' before Pooling"),
    "Pooling twice": (embedder("Transformer", "Pooling", "Pooling"), "Pooling' a second time"),
    "no modules": (config(architectures=["BertModel"]), r"SentenceTransformer\('/.*save_pretrained"),
    "a chat template": (text("chat_template.jinja", "{{ messages }}"), "chat template.*remove"),
    "null": (config(num_hidden_layers=None), "num_hidden_layers is None; expected"),
    # names
    "DataParallel": (names("module.{}".format), "'module.bert.*saved from a wrapper \\(module\\).*inside"),
    "torch.compile": (names("_orig_mod.{}".format), "saved from a wrapper \\(_orig_mod\\)"),
    "FSDP": (
        names(lambda name: name.replace("layer.", "layer._fsdp_wrapped_module.", 1)),
        "saved from a wrapper \\(_fsdp_wrapped_module\\)",
    ),
    "a class around": (names("model.{}".format), "names begin with 'model.': .*class around"),
    "another class around": (names("ranker.net.{}".format), "names begin with 'ranker.net.'"),
    "LoRA inside": (
        names(lambda name: name.replace("self.query.", "self.query.base_layer.")),
        r"base_layer.*merge_and_unload\(\)",
    ),
    # classes
    "no class": (
        config(architectures=None),
        r"model_type 'bert', add .architectures.: ..BertForSequenceClassification",
    ),
    "no class, unknown": (config(architectures=[], model_type="zebra"), "'zebra', add the class"),
    "no type": (config(architectures=None, model_type=None), "not the configuration of a transformer"),
    "NER": (config(architectures=["BertForTokenClassification"]), "It labels tokens, such as named entities"),
    "answers": (
        config(architectures=["BertForQuestionAnswering"]),
        "It marks answers in a text: it is neither",
    ),
    "vision": (config(architectures=["ViTForImageClassification"]), "It reads images: it is neither"),
    "speech": (config(architectures=["WhisperForConditionalGeneration"]), "It reads sound: it is neither"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_names_what_was_found_and_the_next_step(checkpoint: Path, name: str) -> None:
    change, expected = CASES[name]
    change(checkpoint)
    message = refusal(checkpoint)
    assert re.search(expected, message), message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ranker.gguf", "a file \\(GGUF, the format of llama.cpp\\), which is not served"),
        ("model.onnx", "a file \\(ONNX\\)"),
        ("model.safetensors", "it is a file; a model is a directory.*name /"),
    ],
)
def test_a_file_in_place_of_a_directory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / name, Path(name)):  # a relative path is no hub id if the file exists
        message = refusal(source)
        assert re.search(expected.replace("name /", "name ") if source == Path(name) else expected, message)


def test_a_missing_shard_is_named(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / WEIGHTS)
    (checkpoint / WEIGHTS).unlink()
    index = {"weight_map": dict.fromkeys(tensors, "model-00002-of-00002.safetensors")}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert re.search(r"model-00002-of-00002.*missing.*download it again", refusal(checkpoint))


def test_skipped_directories_of_a_models_directory_are_logged(
    tmp_path: Path, original: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(original, tmp_path / "good")
    shutil.copytree(original, tmp_path / "org/good")
    into("0_Transformer")(Path(shutil.copytree(original, tmp_path / "old")))
    only("adapter_config.json", {"base_model_name_or_path": "org/base"})(
        Path(shutil.copytree(original, tmp_path / "lora"))
    )
    (tmp_path / "empty").mkdir()
    with caplog.at_level(logging.WARNING):
        assert sorted(ModelsDirectory(str(tmp_path)).scan()) == ["good", "org/good"]
    assert re.search(
        "old is ignored: config.json is missing; its transformer is in 0_Transformer", caplog.text
    )
    assert re.search("lora is ignored: config.json is missing; it is a LoRA adapter of org/base", caplog.text)
