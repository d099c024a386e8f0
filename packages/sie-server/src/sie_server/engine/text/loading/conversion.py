"""Tokenizers that only transformers can build: sentencepiece vocabularies, and classes that nothing here implements.

The library builds the tokenizer in memory. It runs no code of the repository, and unpickles nothing.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from tokenizers import Tokenizer

from sie_server import install
from sie_server.engine.storage.hub import VOCABULARIES
from sie_server.engine.text.loading.expansion import check_expansion
from sie_server.engine.text.loading.files import ADDED, SETTINGS, SPECIAL, TOKENIZER, TokenizerFiles
from sie_server.files import JSON_BYTES, TOKENIZER_BYTES, check_regular
from sie_server.models.spec import UnsupportedCheckpoint

NEEDED = ("transformers", "sentencepiece", "google.protobuf")  # the modules of the extra `compat`


def converted(files: TokenizerFiles, name: str) -> Tokenizer:
    """Return the tokenizer that transformers builds of the directory; `name` is the tokenizer's class.

    Raises:
        UnsupportedCheckpoint: there is no vocabulary, transformers is not installed, or it cannot build the tokenizer.
    """
    present = [file for file in (TOKENIZER, *VOCABULARIES) if files.has(file)]
    if not present:
        raise UnsupportedCheckpoint(
            f"{TOKENIZER} is missing in {files.directory}, and there is no other vocabulary "
            f"({', '.join(VOCABULARIES)}); copy the files of the tokenizer that the model was trained with"
        )
    way = f"AutoTokenizer.from_pretrained({str(files.directory)!r}).save_pretrained({str(files.directory)!r})"
    if not all(_installed(module) for module in NEEDED):
        raise UnsupportedCheckpoint(
            f"{files.directory} has {' and '.join(present)}, which only transformers can turn into the tokenizer "
            f"{name}: {install('compat')}. Or convert it once where transformers and sentencepiece are installed: {way}"
        )
    for file in (*present, ADDED):
        if files.has(file):
            check_regular(files.directory / file, TOKENIZER_BYTES)
    for file in ("config.json", SETTINGS, SPECIAL, "chat_template.jinja"):
        if files.has(file):
            check_regular(files.directory / file, JSON_BYTES)
    try:
        built: Any = _build(files)
    except Exception as error:  # the library raises errors of every type
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnsupportedCheckpoint(
            f"transformers cannot build the tokenizer of {files.directory} from {' and '.join(present)}: {reason:.300}"
        ) from error
    backend = getattr(built, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise UnsupportedCheckpoint(
            f"the tokenizer {type(built).__name__} of {files.directory} is written in Python and has no {TOKENIZER}, "
            "which is not supported; serve a model with another tokenizer"
        )
    check_expansion(backend.to_str().encode())
    return backend


def _build(files: TokenizerFiles) -> Any:
    from transformers import AutoTokenizer

    auto: Any = AutoTokenizer  # untyped in the library
    return auto.from_pretrained(files.directory, local_files_only=True, trust_remote_code=False)


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False
