"""The engine and its benchmarks run without the HTTP stack and msgspec, which GPU machines often lack."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sie_server import catalog
from sie_server.engine.text.loading.expansion import check_expansion
from sie_server.models.spec import UnsupportedCheckpoint
from sie_server.templates import TemplateError, named_template, parse_template
from support.checkpoints.cross_encoders import make_cross_encoder
from support.checkpoints.decoders import make_decoder

BLOCKED = (
    "starlette",
    "uvicorn",
    "msgspec",
    "swagger_ui_bundle",
    "httptools",
    "prometheus_client",
    "sie_sdk",
)
PROGRAM = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""
IMPORTS = """
import bench.cross_encoders, bench.lora, bench.prefix_sharing, bench.stages, bench.workload
import sie_server.engine.calibration, sie_server.serving.device.isolation
import support.families.every
"""
SCORES = """
from pathlib import Path
from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts
engine = Engine(Path(sys.argv[1]), device="cpu", dtype="float32", template=sys.argv[2] or None)
print(*engine.run(engine.tokenize_score(ScoreTexts("when does rain fall", ["rain falls", "stars burn"], 128)).work))
"""


def run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_engine_and_the_benchmarks_import_without_the_http_stack() -> None:
    run(PROGRAM + IMPORTS)


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_scores_are_the_same_without_msgspec(kind: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    if kind == "bert":
        make_cross_encoder(model, "bert")
    else:
        make_decoder(model, "qwen3")
    arguments = (str(model), "qwen3-reranker" if kind == "qwen3" else "")
    assert run(PROGRAM + SCORES, *arguments) == run("import sys\n" + SCORES, *arguments)


@pytest.fixture
def without_msgspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)


@pytest.mark.usefixtures("without_msgspec")
@pytest.mark.parametrize("content", [b"{", b"[]", b"7"])
def test_a_broken_tokenizer_file_is_refused_without_msgspec(content: bytes) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"tokenizer\.json cannot be read"):
        check_expansion(content)


@pytest.mark.usefixtures("without_msgspec")
def test_a_template_of_an_operator_is_not_used_unchecked() -> None:
    with pytest.raises(TemplateError, match="msgspec is not installed"):
        parse_template({"name": "t", "source": "s", "pieces": ["{query} {document}"]})
    assert named_template("qwen3-reranker").takes_instruction


def test_names_of_the_catalog_are_found_when_they_are_used() -> None:
    assert all(getattr(catalog, name) for name in catalog.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = catalog.nothing
