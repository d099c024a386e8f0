"""Query, document and instruction → the token ids of a causal reranker's filled template.

Every piece is tokenised by itself, as the model's reference does. The caller's texts are read as plain text: a
control token's name in them is spelled out, never the token. Only the document is cut; a query that takes more than
three quarters of what the template leaves is cut to that (the cap of FlagEmbedding and of mxbai_rerank), whatever
the model, so that documents always keep a share.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sie_server.engine.text.tokenizer import CHARS_PER_TOKEN, TextTokenizer, _window
from sie_server.errors import InvalidInput
from sie_server.models.batch import Ids, Tokens
from sie_server.models.spec import UnsupportedCheckpoint, read_json
from sie_server.templates import PLACEHOLDER, RerankTemplate

PROBE = "a b"  # what stands for a text when a template is checked


@dataclass(frozen=True)
class Blank:
    """Plain text of a template with the caller's texts in it: literals at even places, placeholders at odd ones."""

    split: tuple[str, ...]

    def has(self, name: str) -> bool:
        return name in self.split[1::2]

    def ends_with(self, name: str) -> bool:
        """True when nothing comes after `name`, so that cutting ids at the end cuts only it."""
        return self.split[-1] == "" and self.split[-2] == name

    def fill(self, texts: dict[str, str]) -> str:
        return "".join(texts[part] if i % 2 else part for i, part in enumerate(self.split))


@dataclass(frozen=True)
class Form:
    """A compiled template: fixed ids and blanks, in order."""

    parts: tuple[Ids | Blank, ...]

    def place(self, name: str) -> int:
        """Which part holds the placeholder `name`."""
        return next(i for i, part in enumerate(self.parts) if isinstance(part, Blank) and part.has(name))

    @property
    def outside(self) -> int:
        """Fixed tokens before the first and after the last of query and document."""
        first, last = sorted((self.place("query"), self.place("document")))
        return sum(
            len(part)
            for i, part in enumerate(self.parts)
            if not isinstance(part, Blank) and not first < i < last
        )


@dataclass(frozen=True)
class Frame:
    """A template filled with everything but the document."""

    before: Ids
    blank: Blank  # the part that holds the document
    after: Ids
    texts: dict[str, str]  # of the other placeholders
    room: int  # tokens for the document's part
    around: int  # tokens of that part without a document
    query_cut: bool

    def part(self, document: str) -> str:
        """The text of the document's part."""
        return self.blank.fill(self.texts | {"document": document})

    def whole(self, part: Ids) -> Tokens:
        """The filled template; `part` are the ids of the document's part."""
        ids = np.concatenate((self.before, part, self.after))
        return Tokens(ids, len(ids))


class PromptTokenizer(TextTokenizer):
    """One causal reranker's tokenizer and template. Safe to call from several threads once built."""

    def __init__(self, directory: Path, template: RerankTemplate) -> None:
        super().__init__(directory, token_types=False)
        self.template = template
        added = self._tokenizer.get_added_tokens_decoder().values()
        controls = sorted((token.content for token in added if token.special), key=len, reverse=True)
        self._controls = re.compile("(" + "|".join(map(re.escape, controls)) + ")") if controls else None
        self.start = self._start(directory)  # what stands before the first piece
        self._plain = self._compile(template.pieces)
        told = template.instruction_pieces
        self._told = self._compile(told) if told else self._plain
        self.answers = [
            self._token(t) for t in (template.positive, template.negative) if t is not None
        ]  # at most two ids; none where a classifier reads
        # from here on the caller's texts are read: control tokens in them are text like any other
        self._tokenizer.encode_special_tokens = True

    def prompts(
        self, query: str, documents: list[str], instruction: str | None, limit: int
    ) -> tuple[list[Tokens], list[bool], bool]:
        """Filled templates of at most `limit` tokens each, which documents were cut, and whether the query was.

        Raises:
            InvalidInput: the template, the query's share and the instruction leave no room for a document.
        """
        frame = self.frame(query, instruction, limit)
        if frame.blank.ends_with("document"):
            parts, cut = self._encode([frame.part(text) for text in documents], frame.room)
        else:
            fitted = [self._fit(frame, text) for text in documents]
            parts, cut = [ids for ids, _ in fitted], [was_cut for _, was_cut in fitted]
        return [frame.whole(part) for part in parts], cut, frame.query_cut

    def frame(self, query: str, instruction: str | None, limit: int) -> Frame:
        """Everything but the document, in a template of at most `limit` tokens.

        Raises:
            InvalidInput: the template, the query's share and the instruction leave no room for a document.
        """
        form = self._told if instruction else self._plain
        texts = {"query": query, "instruction": instruction or self.template.default_instruction or ""}
        place, cap = form.place("document"), max(1, (limit - form.outside) * 3 // 4)
        parts: list[Ids] = []
        query_cut = False
        for i, part in enumerate(form.parts):
            if not isinstance(part, Blank):
                parts.append(part)
                continue
            if part.has("query") and not (part.ends_with("query") and i != place):
                texts["query"], query_cut = self._head(query, cap)
            if i == place:
                parts.append(np.empty(0, np.int32))
            elif part.ends_with("query"):
                [ids], [query_cut] = self._encode([part.fill(texts)], cap)
                parts.append(ids)
            else:
                parts.append(self.ids(part.fill(texts)))
        room = limit - sum(map(len, parts))
        blank = form.parts[place]
        assert isinstance(blank, Blank)
        around = len(self.ids(blank.fill(texts | {"document": ""})))
        if room <= around:
            where = "$.instruction" if instruction is not None else "$.options.max_seq_length"
            raise InvalidInput(
                f"template, query{'' if instruction is None else ' and instruction'} take {around - room + 1} tokens "
                f"more than max_seq_length leaves for a document - at `{where}`"
            )
        # the document's own part is empty
        before, after = np.concatenate(parts[:place]), np.concatenate(parts[place:])
        return Frame(before, blank, after, texts, room, around, query_cut)

    def _fit(self, frame: Frame, document: str) -> tuple[Ids, bool]:
        """Cut the document's text until the whole part fits, because what follows it must stay."""
        keep, text, cut = frame.room - frame.around, document, False
        if len(document) > frame.room * CHARS_PER_TOKEN:
            text, cut = self._head(document, keep)
        ids = self.ids(frame.part(text))
        while len(ids) > frame.room:
            # the ends of a cut text may need a token or two more than inside the whole, hence the loop
            text, _ = self._head(document, max(0, keep))
            keep, cut = keep - 1, True
            ids = self.ids(frame.part(text))
        return ids, cut

    def _head(self, text: str, tokens: int) -> tuple[str, bool]:
        """As much of the start of `text` as makes `tokens` tokens, and whether that is less than all."""
        width = max(256, tokens * CHARS_PER_TOKEN)
        while True:
            window = _window(text, width)
            encoding = self._tokenizer.encode(window.text, add_special_tokens=False)
            if window.whole or len(encoding.ids) > tokens + window.edge:
                break
            width *= 4
        if len(encoding.ids) <= tokens:
            return text, False
        return text[: encoding.offsets[tokens - 1][1]] if tokens else "", True

    def ids(self, text: str) -> Ids:
        """A piece of text by itself."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    # ── when the checkpoint loads ──

    def _compile(self, pieces: tuple[str, ...]) -> Form:
        parts: list[Ids | Blank] = [self.start]
        for piece in pieces:
            compiled = [self._part(text) for text in self._sections(piece)]
            self._check(piece, compiled)
            parts += compiled
        return Form((*parts, self._end()))

    def _sections(self, piece: str) -> list[str]:
        """The piece's control tokens and the texts between them; tokenizers never merge across a control token."""
        return [text for text in (self._controls.split(piece) if self._controls else [piece]) if text]

    def _part(self, text: str) -> Ids | Blank:
        return Blank(tuple(PLACEHOLDER.split(text))) if PLACEHOLDER.search(text) else self.ids(text)

    def _check(self, piece: str, parts: list[Ids | Blank]) -> None:
        probe = {"query": PROBE, "document": PROBE, "instruction": PROBE}
        apart = [self.ids(part.fill(probe)) if isinstance(part, Blank) else part for part in parts]
        if not np.array_equal(np.concatenate(apart), self.ids(PLACEHOLDER.sub(PROBE, piece))):
            raise UnsupportedCheckpoint(
                f"template {self.template.name!r}: this tokenizer reads the piece {piece!r} differently when the "
                "caller's texts are kept apart from control tokens"
            )

    def _start(self, directory: Path) -> Ids:
        if self.template.bos == "none":
            return np.empty(0, np.int32)
        if self.template.bos == "tokenizer":
            return self._single.prefix
        path = directory / "tokenizer_config.json"
        named = read_json(path).get("bos_token") if path.exists() else None
        content = named.get("content") if isinstance(named, dict) else named
        if content is None:
            raise UnsupportedCheckpoint(
                f"template {self.template.name!r} begins with the bos token, and tokenizer_config.json names none"
            )
        return np.array([self._token(content)], np.int32)

    def _end(self) -> Ids:
        """What stands behind the last piece."""
        after = self._single.suffix.tolist() if self.template.bos == "tokenizer" else []
        own = [] if self.template.score_token is None else [self._token(self.template.score_token)]
        return np.array(after + own, dtype=np.int32)

    def _token(self, wanted: str | int) -> int:
        """The id of a text that must be one token; an id is only checked."""
        if isinstance(wanted, int):
            if not 0 <= wanted < self.vocab_size:
                raise UnsupportedCheckpoint(
                    f"template {self.template.name!r} reads token {wanted}, the tokenizer has {self.vocab_size}"
                )
            return wanted
        ids = self.ids(wanted)
        if len(ids) != 1:
            raise UnsupportedCheckpoint(
                f"template {self.template.name!r} reads the token {wanted!r}, which is {len(ids)} tokens here"
            )
        return int(ids[0])
