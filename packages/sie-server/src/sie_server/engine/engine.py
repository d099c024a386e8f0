"""One loaded model: text in, jobs out; works in, results out. All that serving ever sees of a model."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sie_server.engine.chunks import Chunking, ChunkInput
from sie_server.engine.colbert import ColbertInput, ColbertReader, Floats
from sie_server.engine.device import pick_device, pick_dtype
from sie_server.engine.document_cache import ModelDocuments
from sie_server.engine.inputs import LateInteractionInput, PairInput, ScoreInput
from sie_server.engine.job import Job, Work, build_job
from sie_server.engine.prefix import compute_prefixes
from sie_server.engine.prompts import PromptInput, PromptTokenizer
from sie_server.engine.readout import LogitReader, Reader, VectorReader
from sie_server.engine.source import failed
from sie_server.engine.sparse_readout import M3Reader, SpladeReader
from sie_server.engine.tokenize import TextTokenizer
from sie_server.engine.weights import CheckpointWeights, Tally
from sie_server.errors import InvalidInput
from sie_server.models.causal import Prefix
from sie_server.models.checkpoint import read_spec
from sie_server.models.decoder import Decoder
from sie_server.models.late_interaction import TokenProjection, maxsim
from sie_server.models.modules import ModuleStack
from sie_server.models.packed import PackedBatch, Readout, Tokens, pack
from sie_server.models.sparse import M3_FILES, M3Head, M3Spec, SpladeHead, SpladeSpec
from sie_server.models.spec import (
    CausalSpec,
    EmbeddingSpec,
    LateInteractionSpec,
    ModelSpec,
    UnsupportedCheckpoint,
)
from sie_server.models.table import build_backbone, build_classifier, build_token_logits

CPU_ALIGN = 16  # see models.packed
# Tokens; smaller ones pay for calls, larger ones fall out of the caches. All of them are good, one is best.
BATCH_SIZES = {"cpu": (2048, 3072, 4096), "cuda": (8192, 16384, 32768)}


class Engine:
    """A checkpoint on a device. `tokenize_*` may be called from any thread, `run` from one at a time."""

    def __init__(
        self,
        directory: Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_seq_length: int | None = None,
        template: str | None = None,
        share_prefix: bool = True,
        documents: ModelDocuments | None = None,
        tally: Tally | None = None,
    ):
        """Load a checkpoint directory.

        `max_seq_length` (tokens per text or pair) replaces the checkpoint's own default. `template` names the form
        in which a causal reranker is asked, where the directory does not say so itself; `share_prefix` is off only
        to measure what sharing saves. `documents` is where token vectors of late-interaction models are cached;
        `tally` is where the bytes taken so far can be seen.

        Raises:
            ModelLoadFailed: the checkpoint is missing something, has something left over, or is of another kind.
        """
        try:
            self.device = pick_device(device)
        except ValueError as error:
            raise failed(str(error), "ValueError") from error
        self.dtype = pick_dtype(dtype, self.device)
        self._share_prefix = share_prefix
        self.documents = documents
        self._tally = tally or Tally()
        try:
            self._load(directory, template)
        except UnsupportedCheckpoint as error:
            raise failed(f"cannot load {directory}: {error}", "UnsupportedCheckpoint") from error
        self.max_seq_length = min(max_seq_length or self.spec.max_seq_length, self.spec.backbone.max_length)
        self.batch_tokens = BATCH_SIZES[self.device.type][0]
        self.tokens_per_second = 10_000.0

    def _load(self, directory: Path, template: str | None) -> None:
        self.spec: ModelSpec = read_spec(directory, template)
        self._read_text(directory)
        weights = CheckpointWeights(directory, device=self.device, dtype=self.dtype, tally=self._tally)
        self._backbone = build_backbone(self.spec, weights)
        self._reader = self._build_reader(directory, weights)
        weights.finish()

    def _read_text(self, directory: Path) -> None:
        head, backbone = self.spec.head, self.spec.backbone
        if isinstance(head, CausalSpec):
            self._tokenizer: TextTokenizer = PromptTokenizer(directory, head.template)
        else:
            self._tokenizer = TextTokenizer(directory, token_types=backbone.token_types)
        self._input = self._build_input(directory, self.documents, self._share_prefix)
        self._plain_input = self._build_input(directory, None, False)
        if self._tokenizer.vocab_size > backbone.vocab_size:
            raise UnsupportedCheckpoint(
                f"tokenizer.json has {self._tokenizer.vocab_size} tokens, "
                f"the embedding table {backbone.vocab_size} rows"
            )

    def _build_input(
        self, directory: Path, documents: ModelDocuments | None, share_prefix: bool
    ) -> ScoreInput:
        head = self.spec.head
        if isinstance(self._tokenizer, PromptTokenizer):
            return PromptInput(self._tokenizer, share=share_prefix)
        if isinstance(head, LateInteractionSpec):
            return ColbertInput(head, self._tokenizer, directory, documents)
        if isinstance(head, EmbeddingSpec):
            return LateInteractionInput(self._tokenizer, documents)
        return PairInput(self._tokenizer)

    def _build_reader(self, directory: Path, weights: CheckpointWeights) -> Reader:
        head = self.spec.head
        if isinstance(head, SpladeSpec):
            return SpladeReader(SpladeHead(head, self.spec.backbone, weights))
        if isinstance(head, M3Spec):
            return self._m3_reader(head, directory)
        if isinstance(head, LateInteractionSpec):
            own = [weights.folder(p.folder) if p.folder else weights for p in head.projections]
            project = TokenProjection(head.projections, own)
            return ColbertReader(project, self._tokenizer, head.skip_words, self.documents)
        if isinstance(head, EmbeddingSpec):
            scorer = weights.at("scorer") if head.dense_weight is not None else None
            vocabulary = self.spec.backbone.vocab_size
            table = scorer.take("token_weights", vocabulary, dtype=torch.float32) if scorer else None
            return VectorReader(head, table, ModuleStack(head.modules, weights), self.documents)
        if isinstance(self._tokenizer, PromptTokenizer):
            return LogitReader(build_token_logits(self.spec, weights, self._tokenizer.answers))
        return LogitReader(build_classifier(self.spec, weights))

    def _m3_reader(self, head: M3Spec, directory: Path) -> Reader:
        files = [
            CheckpointWeights(directory, device=self.device, dtype=self.dtype, file=f, tally=self._tally)
            for f in M3_FILES
        ]
        m3 = M3Head(self.spec.backbone.hidden_size, *files)
        for file in files:
            file.finish()
        return M3Reader(head, m3, self._tokenizer.ids_of(head.special_tokens))

    @property
    def memory_bytes(self) -> int:
        """Bytes of its tensors."""
        return self._tally.nbytes

    def limit(self, asked: int | None) -> int:
        """Tokens per text or pair: what was asked for, as far as the model's positions reach.

        Raises:
            InvalidInput: more than the model can read, or too few for any text.
        """
        most, least = self.spec.backbone.max_length, 8
        if asked is not None and not least <= asked <= most:
            raise InvalidInput(
                f"max_seq_length is {asked}, this model takes {least} to {most} - at `$.options.max_seq_length`"
            )
        return asked or self.max_seq_length

    def tokenize_score(
        self, query: str, documents: list[str], max_seq_length: int, instruction: str | None = None
    ) -> Job:
        """The work of ranking `documents`; results will be logits, or late-interaction scores.

        `instruction` only for a model whose `spec.takes_instruction`.
        """
        return self._input.score_job(query, documents, max_seq_length, instruction)

    def shorten(self, texts: list[str], most: int) -> tuple[list[str], list[bool]]:
        """Each text to where its `most`-th token ends, special ones not counted, and which texts are shorter now.

        A token that ends within a character is read to that character's end.
        """
        encoded, cut = self._tokenizer.encode_with_spans(texts, most)
        ends = [spans[-1][1] if spans else 0 for _, spans in encoded]
        return [t[:e] if c else t for t, e, c in zip(texts, ends, cut, strict=True)], cut

    def tokenize_plain(
        self, query: str, documents: list[str], max_seq_length: int, instruction: str | None = None
    ) -> Job:
        """As `tokenize_score`, every sequence whole: nothing cached, no shared start. To look at, not to run."""
        return self._plain_input.score_job(query, documents, max_seq_length, instruction)

    def tokenize_vectors(
        self, query: str | Floats, documents: list[str] | list[Floats], max_seq_length: int
    ) -> Job:
        """As `tokenize_score`, where query or documents came as token vectors [tokens, dim].

        Only for models with `LateInteractionSpec`.
        """
        assert isinstance(self._input, ColbertInput)
        return self._input.vectors_job(query, documents, max_seq_length)

    def tokenize_chunks(
        self, query: str, documents: list[str], max_seq_length: int, chunking: Chunking
    ) -> Job:
        """The same with every document whole, in overlapping windows; one result per window (`Job.chunks`).

        Raises:
            InvalidInput: this kind of model does not split documents, or the overlap is too large.
        """
        if not isinstance(self._input, ChunkInput):
            raise InvalidInput(
                "this model does not split documents, only 'truncate' is given - at `$.options.long_document`"
            )
        return self._input.chunk_job(query, documents, max_seq_length, chunking)

    def tokenize_encode(
        self, texts: list[str], outputs: tuple[str, ...], max_seq_length: int, *, is_query: bool = False
    ) -> Job:
        """The work of turning `texts` into vectors."""
        if isinstance(self._input, ColbertInput):
            return self._input.encode_job(texts, outputs, max_seq_length, is_query=is_query)
        return build_job(outputs, *self._tokenizer.singles(texts, max_seq_length))

    @property
    def readout(self) -> Readout:
        """Which tokens' hidden states make a result."""
        return self._reader.readout

    def decode(self, ids: list[int]) -> str:
        """Tokens as text, special ones included."""
        return self._tokenizer.decode(ids)

    def tokens(self, ids: list[int]) -> list[str]:
        """Tokens by name."""
        return self._tokenizer.tokens(ids)

    def read_to(self, text: str, work: Work) -> int | None:
        """How many characters of `text`, which was cut, are in `work`; None where its tokens are not found in a row."""
        return self._tokenizer.read_to(text, work.tokens.ids.tolist())

    @torch.inference_mode()
    def run(self, works: list[Work]) -> list[Any]:
        """One forward pass over any mix of works; one result per work, in order (None for a query)."""
        prefixes = [work.job.prefix for work in works]
        if any(prefixes):
            assert isinstance(self._backbone, Decoder)
            compute_prefixes(self._backbone, list(dict.fromkeys(work.job for work in works)), self._pack)
        batch = self._pack([work.tokens for work in works], prefixes)
        hidden = self._backbone.forward(batch, self._reader.readout)
        return self._reader.read(hidden, batch, works)

    @torch.inference_mode()
    def score_known(self, job: Job) -> None:
        """Score the documents whose vectors were there already, once the query's are; as `run`, on one thread."""
        head, query = self.spec.head, job.query_vectors
        if query is None:
            raise RuntimeError("known documents came before their query")
        # the same document twice is scored once, so that it ties with itself to the last bit
        places: dict[int, list[int]] = {}
        documents = []
        for index, vectors in job.known:
            same = places.setdefault(id(vectors), [])
            if not same:
                documents.append(vectors.to(self.device))
            same.append(index)
        weight = head.dense_weight if isinstance(head, EmbeddingSpec) else None
        scores = maxsim(query.to(self.device), documents, weight)
        for indices, score in zip(places.values(), scores, strict=True):
            for index in indices:
                job.results[index] = score

    def _pack(self, sequences: list[Tokens], prefixes: Sequence[Prefix | None] = ()) -> PackedBatch:
        backbone = self.spec.backbone
        return pack(
            sequences,
            pad_id=backbone.pad_token_id,
            skip_id=backbone.pad_token_id if backbone.skip_padding_positions else None,
            align=CPU_ALIGN,
            device=self.device,
            dtype=self.dtype,
            prefixes=prefixes,
        )

    def calibrate(self, seconds: float = 1.5) -> None:
        """Measure which batch size, in tokens, this machine runs fastest, within about `seconds`."""
        for _ in self.calibration(seconds):
            pass

    def calibration(self, seconds: float = 1.5) -> Iterator[None]:
        """The same in steps of one pass each, so that others' batches may come between them.

        The sizes take turns, so that a busy neighbour hits all of them alike; each is judged by its best pass.
        """
        sizes, spent = BATCH_SIZES[self.device.type], 0.0
        self._measure(sizes[0])  # the first pass lays out weights and warms up
        rates = dict.fromkeys(sizes, 0.0)
        for size in itertools.cycle(sizes):
            yield
            rate = self._measure(size)
            rates[size] = max(rates[size], rate)
            spent += size / rate
            if spent > seconds:
                break
        self.tokens_per_second = max(rates.values())
        self.batch_tokens = min(size for size, rate in rates.items() if rate >= 0.97 * self.tokens_per_second)

    def _measure(self, tokens: int) -> float:
        length = min(128, self.max_seq_length)
        outputs = [output for output in self.spec.outputs if output != "score"]
        job = build_job(tuple((outputs or ["score"])[:1]), [], [])
        sequence = Tokens(np.full(length, self.spec.backbone.pad_token_id, np.int32), length)
        works = [Work(sequence, 0, job) for _ in range(max(1, tokens // length))]
        start = time.perf_counter()
        self.run(works)
        return len(works) * length / (time.perf_counter() - start)
