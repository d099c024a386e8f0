"""A reranker saved by sentence-transformers (5.4 and later) → its template.

Such a repository has a `1_LogitScore` module that names the answer's token ids, and a chat template that renders a
message of role `query` and one of role `document`, after a `system` message that carries the prompt if there is one
(sentence_transformers/cross_encoder/modules/logit_score.py and base/modality.py, 6.2). The chat template is rendered
once, when the checkpoint loads, with marks in the places of the texts; no caller's text ever meets the template engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sie_server.models.spec import UnsupportedCheckpoint, inside, read_json
from sie_server.templates import PLACEHOLDER, RerankTemplate, parse_template

# private-use characters, which no template has; the spaces show whether the template strips what it is given
MARKS = {name: f" \ue000{name}\ue000 " for name in ("query", "document", "instruction")}


def logit_score_template(directory: Path, config: dict[str, Any]) -> RerankTemplate | None:
    """The template of a sentence-transformers reranker; None when the directory is not one.

    Raises:
        UnsupportedCheckpoint: it is one, but its modules or its chat template are not as expected.
    """
    path = directory / "modules.json"
    modules = read_json(path, list) if path.exists() else []
    folders = {str(m.get("type")).rsplit(".", 1)[-1]: m.get("path") for m in modules if isinstance(m, dict)}
    if "LogitScore" not in folders:
        return None
    if set(folders) != {"Transformer", "LogitScore"}:
        raise UnsupportedCheckpoint(
            f"modules.json has {', '.join(sorted(folders))}; a causal reranker has Transformer and LogitScore"
        )
    answer = read_json(inside(directory, str(folders["LogitScore"])) / "config.json")
    if not isinstance(answer.get("true_token_id"), int):
        raise UnsupportedCheckpoint("the LogitScore module names no true_token_id")
    source = _chat_template(directory)
    if source is None:
        return None  # the answer without the question; a template of the catalog may have both
    settings = _optional(directory / "sentence_bert_config.json")
    named = _optional(directory / "config_sentence_transformers.json")
    default = (named.get("prompts") or {}).get(named.get("default_prompt_name"))
    render = _Renderer(directory, source, settings)
    raw = {
        "name": "chat_template.jinja",
        "source": "chat_template.jinja",
        "pieces": [render.piece(default)],
        "instruction_pieces": render.instruction_pieces(),
        "positive": answer["true_token_id"],
        "negative": answer.get("false_token_id"),
        "activation": _activation(named, config),
    }
    return parse_template(raw)


class _Renderer:
    """Renders marks in place of texts, in a sandbox: templates are data of strangers."""

    def __init__(self, directory: Path, source: str, settings: dict[str, Any]) -> None:
        from jinja2 import TemplateError, ext
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        # as transformers' chat_template_utils sets it up; a template that wants more is refused
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols]
        )
        environment.globals["raise_exception"] = _refuse
        self._error = TemplateError
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise UnsupportedCheckpoint(f"chat_template.jinja is not a template: {error}") from error
        self._flat = ((settings.get("modality_config") or {}).get("message") or {}).get("format") == "flat"
        self._given = dict((settings.get("processing_kwargs") or {}).get("chat_template") or {})
        self._given.pop("restore_suffix", None)
        self._given |= _special_tokens(directory)

    def piece(self, system: str | None) -> str:
        """The prompt with `{query}` and `{document}` in it, under a system message if one is given."""
        text = self._render(system)
        wrong = PLACEHOLDER.search(text)
        if wrong:
            raise UnsupportedCheckpoint(f"chat_template.jinja has the literal text {wrong.group()}")
        for name in ("query", "document"):
            if text.count(MARKS[name]) != 1:
                raise UnsupportedCheckpoint(
                    f"chat_template.jinja does not put the {name} into the prompt once and unchanged"
                )
        for name, mark in MARKS.items():
            text = text.replace(mark, f"{{{name}}}")
        return text

    def instruction_pieces(self) -> list[str] | None:
        """The form with an instruction in the system message; None when the template does not show it."""
        text = self.piece(MARKS["instruction"])
        return [text] if text.count("{instruction}") == 1 else None

    def _render(self, system: str | None) -> str:
        texts = ([("system", system)] if system else []) + [(r, MARKS[r]) for r in ("query", "document")]
        messages = [
            {"role": role, "content": text if self._flat else [{"type": "text", "text": text}]}
            for role, text in texts
        ]
        try:
            return self._template.render(
                messages=messages, **({"add_generation_prompt": False} | self._given)
            )
        except (self._error, TypeError, ValueError) as error:
            raise UnsupportedCheckpoint(
                f"chat_template.jinja cannot render a query and a document: {error}"
            ) from error


def _refuse(message: str) -> None:
    raise ValueError(message)


def _chat_template(directory: Path) -> str | None:
    path = directory / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    found = _optional(directory / "tokenizer_config.json").get("chat_template")
    return found if isinstance(found, str) else None


def _special_tokens(directory: Path) -> dict[str, str]:
    """`bos_token` and its like, which chat templates may name."""
    tokens = {}
    for key, value in _optional(directory / "tokenizer_config.json").items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            tokens[key] = content
    return tokens


def _activation(named: dict[str, Any], config: dict[str, Any]) -> str:
    """`activation_fn` of either file, else sigmoid, as sentence-transformers decides for one score."""
    path = named.get("activation_fn") or (config.get("sentence_transformers") or {}).get("activation_fn")
    name = str(path or "Sigmoid").rsplit(".", 1)[-1]
    if name not in ("Identity", "Sigmoid"):
        raise UnsupportedCheckpoint(f"the activation {path!r} is not served; served: Identity, Sigmoid")
    return name.lower()


def _optional(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.exists() else {}
