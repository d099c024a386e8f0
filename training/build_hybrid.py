"""Build a model of the kind of `sie/mini-en` around another encoder of sentence-transformers, to measure cascades.

    python -m training.build_hybrid --encoder all-mpnet-base-v2 --output models/mpnet/hybrid

Nothing is trained: the score has the constants of `sie/mini-en`, and a token has the weight that it has there. The
encoder must have BERT's uncased word pieces.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from training.build_mini_en import (
    OUTPUT,
    SCORER,
    TOKEN_WEIGHTS,
    build_config,
    build_encoder,
    build_tokenizer,
    dump,
)


def weights_by_token(tokenizer: Tokenizer, size: int) -> torch.Tensor:
    """Return the weights of `sie/mini-en` in the order of another vocabulary, [size]; 0 for `<s>` and its like.

    Raises:
        ClickException: the vocabularies differ in more than their special tokens.
    """
    known = Tokenizer.from_file(str(OUTPUT / "tokenizer.json"))
    with safe_open(OUTPUT / "model.safetensors", framework="pt") as file:
        table = file.get_tensor(TOKEN_WEIGHTS)
    weights = torch.zeros(size, dtype=table.dtype)
    for token, number in tokenizer.get_vocab().items():
        place = known.token_to_id(token)
        if place is not None:
            weights[number] = table[place]
        elif not token.startswith("<"):  # of the template
            raise click.ClickException(
                f"sie/mini-en has no token {token!r}; use an encoder with BERT's word pieces"
            )
    return weights


@click.command()
@click.option(
    "--encoder", type=click.Path(path_type=Path, exists=True), required=True, help="A checkpoint's folder."
)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder of the model.")
def main(encoder: Path, output: Path) -> None:
    """Write config, tokenizer, weights in bf16 and the constants of the score."""
    config = json.loads(build_config(encoder))
    tokenizer = build_tokenizer(encoder)
    family = config["model_type"]
    prefix = "" if family == "bert" else f"{family}."  # how the server names the encoder of a family
    tensors = {f"{prefix}{name}": tensor for name, tensor in build_encoder(encoder).items()}
    tensors[TOKEN_WEIGHTS] = weights_by_token(Tokenizer.from_buffer(tokenizer), config["vocab_size"])
    output.mkdir(parents=True, exist_ok=True)
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    (output / "config.json").write_bytes(dump(config))
    (output / "tokenizer.json").write_bytes(tokenizer)
    (output / "sie_scorer.json").write_bytes(dump(SCORER))
    click.echo(f"wrote {click.format_filename(output)}")


if __name__ == "__main__":
    main()
