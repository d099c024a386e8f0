"""A checkpoint directory → its tokenizer, with the ids of `transformers.AutoTokenizer`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from sie_server.engine.text.loading.added import add_tokens, listed_tokens, special_token, token_text
from sie_server.engine.text.loading.classes import REBUILT, TokenizerClass
from sie_server.engine.text.loading.conversion import converted
from sie_server.engine.text.loading.expansion import check_expansion
from sie_server.engine.text.loading.files import SETTINGS, TOKENIZER, TokenizerFiles
from sie_server.engine.text.loading.names import THROUGH_TRANSFORMERS, class_name
from sie_server.engine.text.loading.parts import read_parts
from sie_server.engine.text.loading.vocabularies import has_vocabulary, read_vocabulary
from sie_server.files import TOKENIZER_BYTES, read_bytes
from sie_server.models.spec import UnsupportedCheckpoint
from sie_server.panics import is_panic


@dataclass
class _File:
    """tokenizer.json without the vocabulary, which may be large."""

    model: _Model
    added_tokens: list[Any] = field(default_factory=list)
    pre_tokenizer: Any = None
    decoder: Any = None


@dataclass
class _Model:
    """The parameters of the vocabulary model."""

    type: str | None = None  # older files have none
    dropout: Any = None
    unk_token: Any = None
    unk_id: Any = None
    continuing_subword_prefix: Any = None
    end_of_word_suffix: Any = None
    fuse_unk: Any = None
    byte_fallback: Any = None
    ignore_merges: Any = None
    max_input_chars_per_word: Any = 100


@dataclass(frozen=True)
class _Saved:
    """tokenizer.json: its bytes, its parts without the vocabulary, and the tokenizer that it describes."""

    content: bytes
    parts: _File
    tokenizer: Tokenizer

    @property
    def on_bytes(self) -> bool:
        """Return whether the tokens are made of bytes, as in Llama 3."""
        todo = [self.parts.pre_tokenizer, self.parts.decoder]
        while todo:
            step = todo.pop()
            if isinstance(step, dict):
                if step.get("type") == "ByteLevel":
                    return True
                todo += step.get("pretokenizers") or step.get("decoders") or []
        return False


def load_tokenizer(files: TokenizerFiles) -> tuple[Tokenizer, str]:
    """Build the tokenizer of a checkpoint, which neither truncates nor pads, and return the side that it would cut.

    Raises:
        UnsupportedCheckpoint: a file is missing or invalid, or needs a class that only transformers has.
    """
    saved = _saved(files) if files.has(TOKENIZER) else None
    name = class_name(files, byte_level=bool(saved and saved.on_bytes))
    kind = REBUILT.get(name)
    if name in THROUGH_TRANSFORMERS or (saved is None and not (kind and has_vocabulary(files, kind))):
        tokenizer = converted(files, name)
    elif kind is None:
        assert saved is not None
        tokenizer = saved.tokenizer
        add_tokens(tokenizer, listed_tokens(files, saved.parts.added_tokens) or [], files)
    elif saved is None:
        tokenizer = _assembled(read_vocabulary(files, kind, _parameters(kind, files)), [], files, kind)
    else:
        tokenizer = _rebuilt(saved, files, kind, name)
    side = str((tokenizer.truncation or {}).get("direction", "right"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = bool(files.flag("split_special_tokens", False))
    return tokenizer, side


def _saved(files: TokenizerFiles) -> _Saved:
    path = files.directory / TOKENIZER
    try:
        content = read_bytes(path, TOKENIZER_BYTES)
        tokenizer = Tokenizer.from_buffer(content)
    except BaseException as error:  # the library raises a bare Exception, or panics
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise UnsupportedCheckpoint(f"{path} is not a valid tokenizer: {error}") from error
    check_expansion(content)
    return _Saved(content, read_parts(content, _File), tokenizer)


def _rebuilt(saved: _Saved, files: TokenizerFiles, kind: TokenizerClass, name: str) -> Tokenizer:
    """Take the vocabulary of tokenizer.json, and build everything else as the class does."""
    model = saved.parts.model
    if model.type not in (None, kind.model):
        raise UnsupportedCheckpoint(
            f"the tokenizer class {name} ({SETTINGS}, or else the model type) needs a {kind.model} vocabulary, but "
            f"{TOKENIZER} contains a {model.type!r:.80} vocabulary; set tokenizer_class to PreTrainedTokenizerFast to "
            f"use {TOKENIZER} as it is"
        )
    parameters, listed = _parameters(kind, files), listed_tokens(files, saved.parts.added_tokens)
    tokenizer = saved.tokenizer
    same = all((getattr(model, key) or None) == (value or None) for key, value in parameters.items())
    if not same or listed is not None:
        tokenizer = _edited(saved.content, parameters, drop_added=listed is not None)
    return _assembled(tokenizer, listed or [], files, kind)


def _edited(content: bytes, parameters: dict[str, Any], *, drop_added: bool) -> Tokenizer:
    """Return the tokenizer with other parameters of its vocabulary model, and without added tokens."""
    file = json.loads(content)
    file["model"] |= parameters
    if drop_added:
        file["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(file))


def _assembled(
    tokenizer: Tokenizer, listed: list[Any], files: TokenizerFiles, kind: TokenizerClass
) -> Tokenizer:
    """Build the class's pipeline around a vocabulary."""
    kind.pipeline(tokenizer, files)
    add_tokens(tokenizer, listed, files, kind)
    if kind.frame is not None:
        start, end = (special_token(tokenizer, n, files, kind.tokens.get(n)) for n in kind.frame_tokens)
        tokenizer.post_processor = kind.frame(start, end, files)
    elif not files.has(TOKENIZER):
        tokenizer.post_processor = _ends(tokenizer, files, kind)
    return tokenizer


def _ends(tokenizer: Tokenizer, files: TokenizerFiles, kind: TokenizerClass) -> TemplateProcessing:
    """Return the post-processor without tokenizer.json: bos and eos where the settings add them."""
    named = [
        special_token(tokenizer, f"{end}_token", files, kind.tokens.get(f"{end}_token"))
        for end in ("bos", "eos")
        if files.flag(f"add_{end}_token", False)
    ]
    before = [name for name, _ in named[:1]] if files.flag("add_bos_token", False) else []
    after = [name for name, _ in named[-1:]] if files.flag("add_eos_token", False) else []
    one = [*before, "$A", *after]
    return TemplateProcessing(
        single=one,
        pair=[*one, *(f"{t}:1" for t in before), "$B:1", *(f"{t}:1" for t in after)],
        special_tokens=named,
    )


def _parameters(kind: TokenizerClass, files: TokenizerFiles) -> dict[str, Any]:
    """Return the parameters of the class's vocabulary model by their names in tokenizer.json."""
    found = dict(kind.parameters)
    if found.get("unk_token"):
        unknown = files.token("unk_token", kind.tokens["unk_token"])
        if unknown is None:
            raise UnsupportedCheckpoint(
                f"{SETTINGS}: unk_token is null, but the tokenizer class needs it; name the token"
            )
        found["unk_token"] = token_text(unknown)
    return found
