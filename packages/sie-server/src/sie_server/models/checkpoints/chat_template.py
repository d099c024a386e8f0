"""A reranker saved by sentence-transformers (5.4 and later) → its template.

Such a repository has a `1_LogitScore` module with the answer's token ids, or a decoder with a classifier. Its chat
template renders a message of role `query` and one of role `document`, after an optional `system` message
(sentence_transformers/cross_encoder/modules/logit_score.py and base/modality.py, 6.2). The chat template is rendered
once, when the checkpoint loads, with marks in place of the texts; texts of requests never reach the template engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sie_server.files import read_text
from sie_server.models.heads.modular import read_activation
from sie_server.models.settings.sentence import sentence_settings
from sie_server.models.spec import UnsupportedCheckpoint, inside, read_json
from sie_server.templates import PLACEHOLDER, RerankTemplate, parse_template
from sie_server.templates.rendering import RenderError, render

FILE = "chat_template.jinja"

# model types whose chat templates take texts, and what shows that a template takes lists
# (sentence_transformers/base/modality.py, 6.0)
FLAT_TYPES = ("apertus", "deepseek_v3", "gpt_oss", "seed_oss")
STRUCTURED = ("content[0]", ".type", "'type'", '"type"', "message.content[")
# private-use characters, which no template contains; the spaces show whether the template strips its input
MARKS = {name: f" \ue000{name}\ue000 " for name in ("query", "document", "instruction")}


class NoPair(UnsupportedCheckpoint):
    """The chat template has no place for a query and a document, such as one for conversations."""


def saved_template(directory: Path, config: dict[str, Any], *, own_head: bool) -> RerankTemplate | None:
    """Return the template of a sentence-transformers reranker; None when the directory has none.

    With `own_head` the checkpoint is a classifier, which needs no `modules.json`.

    Raises:
        NoPair: the chat template of a classifier is not one of a reranker.
        UnsupportedCheckpoint: the modules or the chat template of the reranker are not as expected.
    """
    answer = {} if own_head else _answer(directory)
    settings = sentence_settings(directory)
    source = _chat_template(directory, own_head=own_head)
    if answer is None or source is None or (own_head and not _renders(settings)):
        return None  # the template of the catalog, if any, also names the answer's tokens
    named = _optional(directory / "config_sentence_transformers.json")
    default = (named.get("prompts") or {}).get(named.get("default_prompt_name"))
    try:
        pieces, instruction_pieces = _Renderer(directory, source, config, settings).pieces(default)
    except NoPair as error:
        if own_head:
            raise
        raise UnsupportedCheckpoint(str(error)) from error
    raw = {
        "name": FILE,
        "source": FILE,
        "pieces": pieces,
        "instruction_pieces": instruction_pieces,
        "positive": answer.get("true_token_id"),
        "negative": answer.get("false_token_id"),
        "activation": read_activation(directory, config),
        "cut": "document",  # the rendered prompt loses its end, and the text after the document is put back
    }
    return parse_template(raw)


def _answer(directory: Path) -> dict[str, Any] | None:
    """Return the configuration of the `LogitScore` module; None when the repository has no such module."""
    path = directory / "modules.json"
    modules = read_json(path, list) if path.exists() else []
    folders = {str(m.get("type")).rsplit(".", 1)[-1]: m.get("path") for m in modules if isinstance(m, dict)}
    if "LogitScore" not in folders:
        return None
    if set(folders) != {"Transformer", "LogitScore"}:
        raise UnsupportedCheckpoint(
            f"modules.json lists {', '.join(sorted(folders))}; a causal reranker must have Transformer and LogitScore"
        )
    answer = dict(read_json(inside(directory, str(folders["LogitScore"])) / "config.json"))
    if not isinstance(answer.get("true_token_id"), int):
        raise UnsupportedCheckpoint("the LogitScore module has no true_token_id")
    return answer


def _renders(settings: dict[str, Any]) -> bool:
    """Return whether the library renders the chat template: by default it does if there is one."""
    modalities = settings.get("modality_config")
    return modalities is None or "message" in modalities


class _Renderer:
    """Renders marks in place of texts, in a child process with limits, because templates are untrusted."""

    def __init__(
        self, directory: Path, source: str, config: dict[str, Any], settings: dict[str, Any]
    ) -> None:
        self._source = source
        form = ((settings.get("modality_config") or {}).get("message") or {}).get("format", "auto")
        self._flat = form == "flat" or (form == "auto" and _is_flat(source, str(config.get("model_type"))))
        self._given = dict((settings.get("processing_kwargs") or {}).get("chat_template") or {})
        self._given.pop("restore_suffix", None)
        self._given |= _special_tokens(directory)

    def pieces(self, default: str | None) -> tuple[list[str], list[str] | None]:
        """Return the pieces with the system message `default`, if any, and those with an instruction in its place.

        The latter are None if the template does not render the instruction.
        """
        try:
            texts = render(self._source, [self._variables(s) for s in (default, MARKS["instruction"])])
        except RenderError as error:
            raise NoPair(f"{FILE} {error}") from error
        plain, instructed = (_piece(text) for text in texts)
        return [plain], [instructed] if instructed.count("{instruction}") == 1 else None

    def _variables(self, system: str | None) -> dict[str, Any]:
        texts = [(role, MARKS[role]) for role in ("query", "document")]
        if system:
            texts.insert(0, ("system", system))
        messages = [
            {"role": role, "content": text if self._flat else [{"type": "text", "text": text}]}
            for role, text in texts
        ]
        return {"messages": messages, **({"add_generation_prompt": False} | self._given)}


def _is_flat(source: str, model_type: str) -> bool:
    """Return whether a message's content is a text, not a list (`InputFormatter._infer_format` of the library)."""
    return model_type in FLAT_TYPES or not any(sign in source for sign in STRUCTURED)


def _piece(text: str) -> str:
    """Return a rendered prompt with `{query}` and `{document}` in place of the marks."""
    wrong = PLACEHOLDER.search(text)
    if wrong:
        raise UnsupportedCheckpoint(f"{FILE} contains the literal text {wrong.group()}")
    for name in ("query", "document"):
        if f"\ue000{name}\ue000" not in text:
            raise NoPair(f"{FILE} must put the {name} into the prompt: the content of the role {name!r}")
        if text.count(MARKS[name]) != 1:
            raise UnsupportedCheckpoint(
                f"{FILE} must put the {name} into the prompt exactly once and unchanged"
            )
    for name, mark in MARKS.items():
        text = text.replace(mark, f"{{{name}}}")
    return text


def _chat_template(directory: Path, *, own_head: bool) -> str | None:
    path = directory / FILE
    if path.exists():
        try:
            return read_text(path)
        except (OSError, ValueError) as error:
            raise UnsupportedCheckpoint(f"{path} cannot be read: {error}") from error
    found = _optional(directory / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list) and own_head:
        raise NoPair(
            "tokenizer_config.json has several chat templates; keep the one of the reranker, as a text"
        )
    return found if isinstance(found, str) else None


def _special_tokens(directory: Path) -> dict[str, str]:
    """Return `bos_token` and other special tokens, which chat templates may use."""
    tokens = {}
    for key, value in _optional(directory / "tokenizer_config.json").items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            tokens[key] = content
    return tokens


def _optional(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.exists() else {}
