"""Query, document and instruction → the token ids of a causal reranker's filled template.

Every piece is tokenised separately, as the model's reference does. The caller's texts are plain text: the name of a
control token in them is spelled out and never becomes the token. The template is never cut. How much of the query and
the document remains is the rule of the model's own library (`RerankTemplate.cut`), within a limit for the whole prompt:

- `shared`: the query keeps three quarters of the room that the template leaves, then the document is cut. This is
  `prepare_inputs` in mxbai_rerank/mxbai_rerank_v2.py, whose `max_length` is that room.
- `document`: only the document is cut, down to its last token, and only then the query. This is what
  sentence-transformers does with a chat template (`_restore_chat_template_suffix` in base/modules/transformer.py), and
  the example of Qwen3-Reranker's model card.
- `flag-embedding`: with M = limit - 2 x the tokens after the document, the query keeps 3/4 of M and the document M.
  This is `compute_score_single_gpu` in FlagEmbedding/inference/reranker/decoder_only/base.py with `max_length` M, which
  adds the tokens after the document twice.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from sie_server.engine.text.forms import Blank, Form, Frame
from sie_server.engine.text.reading import ALL, CHARS_PER_TOKEN, Reading
from sie_server.engine.text.slices import most_chars
from sie_server.engine.text.tokenizer import TextTokenizer
from sie_server.errors import InvalidInput
from sie_server.models.batch import Ids, Tokens
from sie_server.models.spec import UnsupportedCheckpoint, read_json
from sie_server.templates import PLACEHOLDER, Cut, RerankTemplate

PROBE = "a b"  # the text in every placeholder when a template is checked
SMALL_STEPS = 8  # tries; after these, a document that does not fit is shortened by half instead of one token


class PromptTokenizer(TextTokenizer):
    """The tokenizer and template of a causal reranker. Thread-safe once built."""

    def __init__(self, directory: Path, template: RerankTemplate, padding: int | None = None) -> None:
        """Load the tokenizer. `padding` is a token id that is left out at the end of a prompt."""
        super().__init__(directory, token_types=False)
        self.check_side("rerankers with a template")
        self.template = template
        self._padding = padding
        added = self._tokenizer.get_added_tokens_decoder().values()
        controls = sorted((token.content for token in added if token.special), key=len, reverse=True)
        self._controls = re.compile("(" + "|".join(map(re.escape, controls)) + ")") if controls else None
        self.start = self._start(directory)  # ids before the first piece
        self._plain = self._compile(template.pieces)
        instructed = template.instruction_pieces
        self._instructed = self._compile(instructed) if instructed else self._plain
        # at most two ids; none if a classifier reads the result
        self.answers = [self._token(t) for t in (template.positive, template.negative) if t is not None]
        # callers' texts are tokenised from here on; names of control tokens in them are plain text
        self._tokenizer.encode_special_tokens = True

    def prompts(
        self, query: str, documents: list[str], instruction: str | None, limit: int
    ) -> tuple[list[Tokens], list[bool], bool]:
        """Return filled templates of at most `limit` tokens, which documents were truncated, and whether the query was.

        Raises:
            InvalidInput: the template, the query's share and the instruction leave no room for a document.
        """
        frame = self.frame(query, instruction, limit)
        if frame.blank.ends_with("document"):
            parts, cut = self._encode(documents, min(frame.room, frame.most), frame.part(""))
        else:
            fitted = [self._fit(frame, text) for text in documents]
            parts, cut = [ids for ids, _ in fitted], [was_cut for _, was_cut in fitted]
        return [frame.whole(part) for part in parts], cut, frame.query_cut

    def frame(self, query: str, instruction: str | None, limit: int, *, split: bool = False) -> Frame:
        """Return a template of at most `limit` tokens, filled except for the document.

        With `split` the document is read in windows, and the query leaves each of them a share.

        Raises:
            InvalidInput: the template, the query's share and the instruction leave no room for a document.
        """
        _check_instruction(instruction, limit)
        form = self._instructed if instruction else self._plain
        limit -= form.padding
        cut: Cut = "shared" if split and self.template.cut == "document" else self.template.cut
        query_cap, document_cap = self._caps(form, limit, cut)
        frame = self._frame(form, query, instruction, limit, query_cap)
        for _ in range(SMALL_STEPS if cut == "document" else 0):
            # only a query that leaves no room for a token of a document is cut
            if frame.room > frame.around or query_cap == 1:
                break
            query_cap = max(1, min(query_cap, limit - 1) - (frame.around + 1 - frame.room))
            frame = self._frame(form, query, instruction, limit, query_cap)
        if frame.room <= frame.around:
            where = "$.options.max_seq_length" if instruction is None else "$.instruction"
            texts_of = "template and query" if instruction is None else "template, query and instruction"
            raise InvalidInput(
                f"{texts_of} are {frame.around - frame.room + 1} tokens too long to leave room for a document within "
                f"max_seq_length; shorten them or raise it - at `{where}`"
            )
        return replace(frame, most=document_cap)

    @staticmethod
    def _caps(form: Form, limit: int, cut: Cut) -> tuple[int, int]:
        """Return the most tokens of the query and of the document, each with the text that is tokenised with it."""
        if cut == "document":
            return limit, limit
        if cut == "flag-embedding":
            both = max(8, limit - 2 * form.after)
            return both * 3 // 4, both
        return max(1, (limit - form.before - form.after) * 3 // 4), limit

    def _frame(self, form: Form, query: str, instruction: str | None, limit: int, cap: int) -> Frame:
        """Return the template with at most `cap` tokens of the query; its room may be too small for a document."""
        texts = {"query": query, "instruction": instruction or self.template.default_instruction or ""}
        place = form.place("document")
        parts: list[Ids] = []
        query_cut = False
        for i, part in enumerate(form.parts):
            if not isinstance(part, Blank):
                parts.append(part)
                continue
            if part.has("query") and not (part.ends_with("query") and i != place):
                [read] = self.read([query], cap)
                texts["query"], query_cut = read.start_of(query), read.cut
            if i == place:
                parts.append(np.empty(0, np.int32))
            elif part.ends_with("query"):
                [ids], [query_cut] = self._encode([query], cap, part.fill(texts | {"query": ""}))
                parts.append(ids)
            else:
                parts.append(self.ids(part.fill(texts)))
        room = limit - sum(map(len, parts))
        blank = form.blank("document")
        around = len(self.ids(blank.fill(texts | {"document": ""})))
        # the document's own part is empty here
        before, after = np.concatenate(parts[:place]), np.concatenate(parts[place:])
        return Frame(before, blank, after, texts, room, room, around, query_cut)

    def _fit(self, frame: Frame, document: str) -> tuple[Ids, bool]:
        """Truncate the document's text until the whole part fits; the text after it must stay."""
        keep, text = frame.room - frame.around, document
        read: Reading | None = None
        if len(document) > frame.room * CHARS_PER_TOKEN:
            [read] = self.read([document], keep)
            text = read.start_of(document)
        ids = self.ids(frame.part(text))
        for tries in range(keep + 1):
            if len(ids) <= frame.room:
                break
            read = read or self.read([document], keep)[0]
            # the end of a truncated text may need one or two more tokens than within the whole, hence the loop
            text = read.start_of(document, keep)
            keep = max(0, keep - 1 if tries < SMALL_STEPS else keep // 2)
            ids = self.ids(frame.part(text))
        return ids, text != document

    def ids(self, text: str) -> Ids:
        """Return the ids of a text without special tokens."""
        return self._encode([text], ALL)[0][0]

    # ── called while the checkpoint loads ──

    def _compile(self, pieces: tuple[str, ...]) -> Form:
        parts: list[Ids | Blank] = [self.start]
        for piece in pieces:
            compiled = [self._part(text) for text in self._sections(piece)]
            self._check(piece, compiled)
            parts += compiled
        whole = (*parts, self._end())
        kept = self._without_padding(whole)
        return Form(kept, Form.fixed(whole) - Form.fixed(kept))

    def _without_padding(self, parts: tuple[Ids | Blank, ...]) -> tuple[Ids | Blank, ...]:
        *rest, last = parts
        if self._padding is None or isinstance(last, Blank):
            return parts
        kept = np.flatnonzero(last != self._padding)
        return (*rest, last[: kept[-1] + 1]) if len(kept) else self._without_padding(tuple(rest))

    def _sections(self, piece: str) -> list[str]:
        """Split a piece at its control tokens and keep them; tokenizers never merge across a control token."""
        return [text for text in (self._controls.split(piece) if self._controls else [piece]) if text]

    def _part(self, text: str) -> Ids | Blank:
        return Blank(tuple(PLACEHOLDER.split(text))) if PLACEHOLDER.search(text) else self.ids(text)

    def _check(self, piece: str, parts: list[Ids | Blank]) -> None:
        probe = {"query": PROBE, "document": PROBE, "instruction": PROBE}
        apart = [self.ids(part.fill(probe)) if isinstance(part, Blank) else part for part in parts]
        if not np.array_equal(np.concatenate(apart), self.ids(PLACEHOLDER.sub(PROBE, piece))):
            raise UnsupportedCheckpoint(
                f"template {self.template.name!r}: this tokenizer tokenises the piece {piece!r} differently when the "
                "caller's texts are separated from control tokens"
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
                f"template {self.template.name!r} begins with the bos token, but tokenizer_config.json names none"
            )
        return np.array([self._token(content)], np.int32)

    def _end(self) -> Ids:
        """Return the ids after the last piece."""
        after = self._single.suffix.tolist() if self.template.bos == "tokenizer" else []
        own = [] if self.template.score_token is None else [self._token(self.template.score_token)]
        return np.array(after + own, dtype=np.int32)

    def _token(self, requested: str | int) -> int:
        """Return the id of a text that must be one token; check a value that is an id already."""
        if isinstance(requested, int):
            if not 0 <= requested < self.vocab_size:
                raise UnsupportedCheckpoint(
                    f"template {self.template.name!r} reads token {requested}, the tokenizer has {self.vocab_size}"
                )
            return requested
        ids = self.ids(requested)
        if len(ids) != 1:
            raise UnsupportedCheckpoint(
                f"template {self.template.name!r} reads the token {requested!r}, which is {len(ids)} tokens here"
            )
        return int(ids[0])


def _check_instruction(instruction: str | None, limit: int) -> None:
    """Refuse an instruction that is too long to be tokenised at all.

    Raises:
        InvalidInput: names the bound.
    """
    if instruction and len(instruction) > most_chars(limit):
        raise InvalidInput(
            f"the instruction has {len(instruction)} characters, and at most {most_chars(limit)} are read for a "
            f"max_seq_length of {limit}; shorten it - at `$.instruction`"
        )
