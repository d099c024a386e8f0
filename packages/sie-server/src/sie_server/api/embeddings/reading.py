"""Fields that the embeddings APIs of several vendors share: texts, truncation, width, and fields without effect."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.reading import check_number
from sie_server.api.embeddings.prompts import read_prompt
from sie_server.errors import InvalidInput
from sie_server.serving.vendor import VendorOptions
from sie_server.wire import EncodeParams, EncodeRequest, EncodeResponse, Item
from sie_server.wire.inference import OutputType as Output

ITEM = re.compile(r"\$\.items\[(\d+)\](\.text)?")
# the values of NVIDIA, Cohere and Bedrock; TEI and Voyage have booleans
REFUSED: tuple[object, ...] = (False, "false", "none")
ALLOWED: tuple[object, ...] = (None, True, "true", "end", "right")
FLOAT: tuple[object, ...] = (None, "float", ["float"])
CUT_AT_START = ("start", "left")
TOKEN_IDS = (
    "token ids are not supported because they belong to one tokenizer; send text "
    "(LangChain: check_embedding_ctx_length=False)"
)
MEDIA = ("image", "image_url", "images", "video", "audio", "content")


@dataclass(frozen=True)
class Call:
    """A request for vectors in the server's terms, and how its answer is written."""

    model: str | None
    output: Output
    encode: EncodeRequest
    vendor: VendorOptions
    write: Callable[[EncodeResponse], Any]
    warnings: list[str]
    names: dict[str, str]  # path in an encode request → path in the caller's body
    where: str  # the field with the texts
    before: int  # texts that come from another field

    def in_callers_terms(self, message: str) -> str:
        """Replace field paths of an encode request in a message by those of the caller's body."""
        for ours, theirs in self.names.items():
            message = message.replace(ours, theirs)
        return ITEM.sub(lambda found: f"$.{self.where}[{int(found[1]) - self.before}]", message)


def read_call(
    fields: Fields,
    texts: list[str],
    where: str,
    write: Callable[[EncodeResponse], Any],
    *,
    output: Output = "dense",
    normalize: bool | None = None,
    before: int = 0,
) -> Call:
    """Read the common fields and report the rest; the texts have been read from the field `where`.

    `normalize` is the vendor's default.

    Raises:
        InvalidInput
    """
    model = fields.take(str, "model")
    dimensions = fields.take(int, "dimensions", "output_dimension")
    length = fields.take(int, "truncate_prompt_tokens")
    normalized = fields.take(bool, "normalize", "normalized")
    truncate = _truncate(fields)
    vendor = VendorOptions(read_prompt(fields), normalize if normalized is None else normalized, truncate)
    options = {
        # infinity's clients send 0, and other clients -1, for all dimensions
        "dimensions": dimensions if dimensions and dimensions > 0 else None,
        # vLLM's clients send -1 for the model's own limit
        "max_seq_length": length if length and length > 0 else None,
    }
    names = {
        "$.params.options.dimensions": f"$.{fields.spelled['dimensions']}",
        "$.params.options.max_seq_length": "$.truncate_prompt_tokens",
        "$.options.max_seq_length": "$.truncate_prompt_tokens",
        "$.params.output_types": "$.model",
        "$.params.normalize": f"$.{fields.spelled['normalize']}",
        "$.params.": "$.",
    }
    _refuse_others(fields)
    fields.finish(strict=False)
    encode = EncodeRequest([Item(text=text) for text in texts], EncodeParams([output], options=options))
    return Call(model, output, encode, vendor, write, fields.warnings, names, where, before)


def texts_of(sent: Any, where: str) -> list[str]:
    """Return the texts of a field: a text, or a list of texts and of objects with `text`.

    Raises:
        InvalidInput: there are none, too many, or token ids or media in their place.
    """
    texts = [sent] if isinstance(sent, str | dict) else sent
    if not isinstance(texts, list) or not texts:
        raise InvalidInput(f"expected a string or a list with at least one string - at `$.{where}`")
    check_number(texts, where)
    return [_text(text, f"$.{where}[{i}]") for i, text in enumerate(texts)]


def _text(sent: Any, path: str) -> str:
    if isinstance(sent, str):
        return sent
    if isinstance(sent, int | list):
        raise InvalidInput(f"{TOKEN_IDS} - at `{path}`")
    if not isinstance(sent, dict):
        raise InvalidInput(
            f"expected a string, got {'null' if sent is None else type(sent).__name__} - at `{path}`"
        )
    if isinstance(sent.get("text"), str):
        return str(sent["text"])
    medium = next((name for name in MEDIA if name in sent), None)
    hint = f"; this server reads text, not `{medium}`" if medium else ""
    raise InvalidInput(f"expected a string or an object with `text`{hint} - at `{path}`")


def _truncate(fields: Fields) -> bool:
    """Take `truncate` or `truncation`, and `truncation_direction`. By default, texts are cut, which is reported.

    Raises:
        InvalidInput: texts may be cut at their start, or the value is not known.
    """
    sent = fields.take(bool | str, "truncate", "truncation")
    direction = (fields.take(str, "truncation_direction", "truncation_side") or "right").lower()
    how = sent.lower() if isinstance(sent, str) else sent
    if how in REFUSED:
        return False
    name = fields.spelled["truncate"]
    if how in CUT_AT_START or direction in CUT_AT_START:
        name = name if how in CUT_AT_START else fields.spelled["truncation_direction"]
        raise InvalidInput(f"texts are truncated only at the end; omit this field - at `$.{name}`")
    if how not in ALLOWED:
        raise InvalidInput(f"expected NONE or END, or true or false - at `$.{name}`")
    return True


def _refuse_others(fields: Fields) -> None:
    """Take fields that describe this server's only behaviour, and refuse those that describe another one.

    Raises:
        InvalidInput
    """
    for name in ("embedding_type", "embedding_types", "output_dtype"):
        wanted = fields.take(Any, name)
        if wanted not in FLOAT:
            raise InvalidInput(
                "vectors are returned as float32 here; for other formats use /v1/encode with `output_dtype` "
                f"- at `$.{name}`"
            )
    if fields.take(str, "modality") not in (None, "text"):
        raise InvalidInput("this server reads text only - at `$.modality`")
    for name, why in (
        ("late_chunking", "texts are encoded one by one, without late chunking"),
        ("return_multivector", "/v1/embeddings returns dense vectors; use /v1/encode"),
    ):
        if fields.take(bool, name):
            raise InvalidInput(f"{why}; omit this field - at `$.{name}`")
    if fields.take(bool, "add_special_tokens") is False:
        raise InvalidInput("the model is always given its special tokens - at `$.add_special_tokens`")
    fields.refuse("messages", "conversations are not encoded; send texts in `input`")
    fields.take(Any, "user")  # for the vendor's monitoring: it never changes an answer
