"""Added and special tokens: texts that are one token each, regardless of the vocabulary.

The order decides their ids, because a token that the vocabulary lacks gets the next one. Source:
`TokenizersBackend.__init__` in transformers/tokenization_utils_tokenizers.py, version 5.23.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokenizers import AddedToken, Tokenizer

from sie_server.engine.text.loading.classes import TokenizerClass
from sie_server.engine.text.loading.files import ADDED, FLAGS, NAMED, SETTINGS, TokenizerFiles, added_token
from sie_server.models.spec import UnsupportedCheckpoint

MOST_ADDED = 2**17  # tokens outside the vocabulary; the largest known tokenizers add about a thousand


def listed_tokens(files: TokenizerFiles, saved: list[Any]) -> list[AddedToken] | None:
    """Return the added tokens in the order of their ids; None: the settings name none in addition to tokenizer.json's.

    `saved` is `added_tokens` of tokenizer.json. `added_tokens_decoder` of tokenizer_config.json replaces it.

    Raises:
        UnsupportedCheckpoint: an entry is not a token, or there are too many.
    """
    if "added_tokens_decoder" in files.own:
        found = _by_id(files.own["added_tokens_decoder"])
    elif files.has(ADDED):
        found = _legacy(files) | {e["id"]: added_token(e["id"], e) for e in saved}
    else:
        return None
    tokens = [token for _, token in sorted(found.items())]
    return None if [_key(t) for t in tokens] == [_saved_key(entry) for entry in saved] else tokens


def add_tokens(
    tokenizer: Tokenizer,
    listed: list[AddedToken],
    files: TokenizerFiles,
    kind: TokenizerClass | None = None,
) -> None:
    """Add the listed tokens, then the named special tokens and the extra ones that are not added tokens yet."""
    defaults = kind.tokens if kind else {}
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    known |= {token.content for token in listed}
    missing: list[AddedToken] = []
    for name in NAMED:
        token = files.token(name, defaults.get(name))
        if token is not None:
            missing.append(_named(token, lstrip=bool(kind and name in kind.left_space)))
    missing += _extra(files)
    new = {token.content: token for token in reversed(missing) if token.content not in known}
    tokens = listed + [new.pop(t.content) for t in missing if t.content in new]
    if kind and kind.plain_tokens:
        tokens += [AddedToken(token.content, special=True) for token in missing]
    tokenizer.add_tokens(tokens)


def special_token(
    tokenizer: Tokenizer, name: str, files: TokenizerFiles, default: str | None
) -> tuple[str, int]:
    """Return the text and id of a named special token that the model needs.

    Raises:
        UnsupportedCheckpoint: the settings set it to null.
    """
    token = files.token(name, default)
    number = None if token is None else tokenizer.token_to_id(token_text(token))
    if token is None or number is None:
        raise UnsupportedCheckpoint(
            f"{SETTINGS}: {name} is null, but the tokenizer class puts this token around every text; name the token"
        )
    return token_text(token), int(number)


def _extra(files: TokenizerFiles) -> Iterator[AddedToken]:
    """Yield tokens with names of their own, then `extra_special_tokens` (formerly `additional_special_tokens`)."""
    settings = files.settings
    named = {k: v for k, v in settings.items() if k.endswith("_token") and k not in NAMED}
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        named, extra = named | extra, []
    if not isinstance(extra, list):
        raise UnsupportedCheckpoint(f"{SETTINGS}: extra_special_tokens is {extra!r:.80}; expected a list")
    for name, value in named.items():
        if isinstance(value, str) or (isinstance(value, dict) and "content" in value):
            yield _named(value if isinstance(value, str) else added_token(name, value))
    for value in extra:
        if isinstance(value, str):
            yield AddedToken(value, special=True)
        else:
            yield added_token("extra_special_tokens", value)


def _legacy(files: TokenizerFiles) -> dict[int, AddedToken]:
    """Read `added_tokens.json`: text → id."""
    special = {token_text(token) for name in NAMED if (token := files.token(name, None)) is not None}
    found: dict[int, AddedToken] = {}
    for text, number in files.read(ADDED).items():
        if type(number) is not int or not text:
            raise UnsupportedCheckpoint(f"{ADDED}: {text!r:.80} has the id {number!r:.80}; expected a number")
        found[number] = AddedToken(text, normalized=text not in special, special=text in special)
    return _bounded(found, ADDED)


def _by_id(entries: Any) -> dict[int, AddedToken]:
    """Read `added_tokens_decoder`: id → token."""
    if not isinstance(entries, dict) or not all(str(key).isdecimal() for key in entries):
        raise UnsupportedCheckpoint(f"{SETTINGS}: added_tokens_decoder must be an object of ids and tokens")
    found = {int(key): added_token(f"added_tokens_decoder.{key}", value) for key, value in entries.items()}
    return _bounded(found, SETTINGS)


def _bounded(found: dict[int, AddedToken], file: str) -> dict[int, AddedToken]:
    if len(found) > MOST_ADDED:
        raise UnsupportedCheckpoint(f"{file} adds {len(found)} tokens; at most {MOST_ADDED} are supported")
    return found


def _named(token: str | AddedToken, lstrip: bool = False) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True, lstrip=lstrip)
    token.special = True
    return token


def token_text(token: str | AddedToken) -> str:
    return token if isinstance(token, str) else str(token.content)


def _key(token: AddedToken) -> tuple[Any, ...]:
    return (token.content, *(getattr(token, name) for name in FLAGS))


def _saved_key(entry: Any) -> tuple[Any, ...]:
    return (entry.get("content"), *(entry.get(name) for name in FLAGS)) if isinstance(entry, dict) else ()
