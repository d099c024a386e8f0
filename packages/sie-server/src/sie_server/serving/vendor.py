"""Options of other vendors' APIs for embeddings that `POST /v1/encode` does not have."""

from __future__ import annotations

from dataclasses import dataclass

from sie_server.errors import InvalidInput, cut, shown
from sie_server.models.spec import Prompts


@dataclass(frozen=True)
class PromptChoice:
    """The prompt that another vendor's request chooses: its text, its name, or the side or task that names one.

    Without any it is `default_prompt_name`, as in `SentenceTransformer.encode`
    (https://sbert.net/docs/package_reference/sentence_transformer/SentenceTransformer.html).
    """

    text: str | None = None
    name: str | None = None
    task: str | None = None  # its own prompt is used where the checkpoint has one
    is_query: bool | None = None

    def of(self, prompts: Prompts, profile: str | None, warnings: list[str]) -> str:
        """Return the text of the prompt; the operator's instruction is the default of its model.

        Raises:
            InvalidInput: the checkpoint has no prompt of that name.
        """
        if self.text is not None:
            return self.text
        if self.name is not None:
            return self._named(self.name, prompts)
        if self.task in prompts.texts:
            return prompts.texts[self.task]
        if self.is_query is not None:
            return prompts.of(self.is_query)
        if self.task is not None and prompts.any:
            warnings.append(f"this model has no prompt for {shown(self.task)}; its default was used")
        if prompts.any and profile:
            return profile
        return "" if prompts.default is None else prompts.texts[prompts.default]

    def _named(self, name: str, prompts: Prompts) -> str:
        """As sentence-transformers, which knows `query` and `document` for every checkpoint."""
        if name in prompts.texts:
            return prompts.texts[name]
        if name in ("query", "document"):
            return prompts.of(name == "query")
        names = cut(", ".join(map(repr, prompts.texts)), 400)
        raise InvalidInput(
            f"this model has no prompt {shown(name)}; it has {names or 'none'} - at `$.params.prompt_name`"
        )


@dataclass(frozen=True)
class VendorOptions:
    """Options of other vendors' APIs for embeddings that `POST /v1/encode` does not have."""

    prompt: PromptChoice = PromptChoice()
    normalize: bool | None = None  # True: length 1; False: as pooled; None: as the checkpoint says
    truncate: bool = True  # False: a text that would be truncated is an error
