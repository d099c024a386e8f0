"""The configuration of the linear layers between hidden states and token vectors: Dense modules in separate folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sie_server.models.heads.modular import ACTIVATIONS
from sie_server.models.spec import ProjectionSpec, UnsupportedCheckpoint, read_json

TOKENS = "token_embeddings"  # the input and output of a Dense module over token vectors


def read_projection(directory: Path, folder: str, default_input: str) -> ProjectionSpec:
    """Read the configuration of a Dense module; `default_input` is its input where the file names none.

    Raises:
        UnsupportedCheckpoint: the folder is not in the checkpoint, or its file has an unsupported value.
    """
    if folder in ("", "..") or Path(folder).name != folder:
        raise UnsupportedCheckpoint(f"modules.json: the path {folder!r} is not a folder next to modules.json")
    config = read_json(directory / folder / "config.json")
    activation = str(config.get("activation_function", "torch.nn.modules.linear.Identity"))
    name = activation.rsplit(".", 1)[-1]
    if name not in ACTIVATIONS or not activation.startswith("torch.nn."):
        raise UnsupportedCheckpoint(
            f"{folder}/config.json: activation_function {activation!r} is not supported; "
            f"supported: {', '.join(ACTIVATIONS)} of torch.nn"
        )
    reads = config.get("module_input_name", default_input)
    if reads != TOKENS or config.get("module_output_name", reads) != TOKENS:
        raise UnsupportedCheckpoint(
            f"{folder}/config.json: input and output must be {TOKENS!r}, got the input {reads!r}"
        )
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
    """Return the width of the token vectors.

    Raises:
        UnsupportedCheckpoint: the input width of a projection differs from the output width of the previous one.
    """
    for projection in projections:
        if projection.inputs != width:
            raise UnsupportedCheckpoint(
                f"{projection.folder}/config.json: in_features is {projection.inputs}, but the input has width {width}"
            )
        width = projection.outputs
    return width
