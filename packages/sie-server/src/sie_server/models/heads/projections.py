"""The linear layers between hidden states and token vectors, as Dense modules in folders of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sie_server.models.heads.modular import ACTIVATIONS
from sie_server.models.spec import ProjectionSpec, UnsupportedCheckpoint, read_json

TOKENS = "token_embeddings"  # what a Dense over token vectors reads and writes


def read_projection(directory: Path, folder: str, default_input: str) -> ProjectionSpec:
    """One Dense module; `default_input` is what it reads where its file does not say so.

    Raises:
        UnsupportedCheckpoint: the folder is not in the checkpoint, or its file asks for something we do not serve.
    """
    if folder in ("", "..") or Path(folder).name != folder:
        raise UnsupportedCheckpoint(f"modules.json: the path {folder!r} is no folder beside it")
    config = read_json(directory / folder / "config.json")
    activation = str(config.get("activation_function", "torch.nn.modules.linear.Identity"))
    name = activation.rsplit(".", 1)[-1]
    if name not in ACTIVATIONS or not activation.startswith("torch.nn."):
        raise UnsupportedCheckpoint(
            f"{folder}/config.json names the activation {activation!r}; "
            f"served: {', '.join(ACTIVATIONS)} of torch.nn"
        )
    reads = config.get("module_input_name", default_input)
    if reads != TOKENS or config.get("module_output_name", reads) != TOKENS:
        raise UnsupportedCheckpoint(f"{folder}/config.json reads {reads!r}, served: {TOKENS!r}")
    try:
        return ProjectionSpec(
            folder=folder,
            inputs=int(config["in_features"]),
            outputs=int(config["out_features"]),
            bias=bool(config.get("bias", True)),
            activation=name,
            residual=bool(config.get("use_residual", False)),
        )
    except KeyError as missing:
        raise UnsupportedCheckpoint(f"{folder}/config.json lacks {missing.args[0]!r}") from None


def check_chain(projections: Sequence[ProjectionSpec], width: int) -> int:
    """The width of the token vectors; each projection must take what the one before it gives.

    Raises:
        UnsupportedCheckpoint: one does not.
    """
    for projection in projections:
        if projection.inputs != width:
            raise UnsupportedCheckpoint(
                f"{projection.folder}/config.json: in_features is {projection.inputs}, what comes in is {width} wide"
            )
        width = projection.outputs
    return width
