"""One loaded model: text in, jobs out; works in, results out. All that serving ever sees of a model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sie_server.engine.chunks import Chunking, ChunkInput
from sie_server.engine.device import pick_device, pick_dtype
from sie_server.engine.inputs import LateInteractionInput, PairInput, ScoreInput
from sie_server.engine.job import Job, Work, build_job
from sie_server.engine.readout import LogitReader, Reader, VectorReader
from sie_server.engine.source import failed
from sie_server.engine.sparse_readout import M3Reader, SpladeReader
from sie_server.engine.tokenize import TextTokenizer
from sie_server.engine.weights import CheckpointWeights
from sie_server.errors import InvalidInput
from sie_server.models.checkpoint import read_spec
from sie_server.models.packed import Readout, Tokens, pack
from sie_server.models.sparse import M3_FILES, M3Head, M3Spec, SpladeHead, SpladeSpec
from sie_server.models.spec import EmbeddingSpec, ModelSpec, UnsupportedCheckpoint
from sie_server.models.table import build_backbone, build_classifier

CPU_ALIGN = 16  # see models.packed
BATCH_SIZES = (512, 1024, 2048, 4096, 8192, 16384)  # tokens


class Engine:
    """A checkpoint on a device. `tokenize_*` may be called from any thread, `run` from one at a time."""

    def __init__(
        self, directory: Path, *, device: str = "auto", dtype: str = "auto", max_seq_length: int | None = None
    ):
        """Load a checkpoint directory.

        `max_seq_length` (tokens per text or pair) replaces the checkpoint's own default.

        Raises:
            ModelLoadFailed: the checkpoint is missing something, has something left over, or is of another kind.
        """
        try:
            self.device = pick_device(device)
        except ValueError as error:
            raise failed(str(error), "ValueError") from error
        self.dtype = pick_dtype(dtype, self.device)
        try:
            self._load(directory)
        except UnsupportedCheckpoint as error:
            raise failed(f"cannot load {directory}: {error}", "UnsupportedCheckpoint") from error
        self.max_seq_length = min(max_seq_length or self.spec.max_seq_length, self.spec.backbone.max_length)
        self.batch_tokens = 2048
        self.tokens_per_second = 10_000.0

    def _load(self, directory: Path) -> None:
        self.spec: ModelSpec = read_spec(directory)
        backbone = self.spec.backbone
        weights = CheckpointWeights(directory, device=self.device, dtype=self.dtype)
        self._backbone = build_backbone(self.spec, weights)
        self._tokenizer = TextTokenizer(directory, token_types=backbone.token_types)
        self._reader = self._build_reader(directory, weights)
        weights.finish()
        embeds = isinstance(self.spec.head, EmbeddingSpec)
        self._input: ScoreInput = (LateInteractionInput if embeds else PairInput)(self._tokenizer)
        if self._tokenizer.vocab_size > backbone.vocab_size:
            raise UnsupportedCheckpoint(
                f"tokenizer.json has {self._tokenizer.vocab_size} tokens, "
                f"the embedding table {backbone.vocab_size} rows"
            )

    def _build_reader(self, directory: Path, weights: CheckpointWeights) -> Reader:
        head = self.spec.head
        if isinstance(head, SpladeSpec):
            return SpladeReader(SpladeHead(head, self.spec.backbone, weights))
        if isinstance(head, M3Spec):
            files = [
                CheckpointWeights(directory, device=self.device, dtype=self.dtype, file=f) for f in M3_FILES
            ]
            m3 = M3Head(self.spec.backbone.hidden_size, *files)
            for file in files:
                file.finish()
            return M3Reader(head, m3, self._tokenizer.ids_of(head.special_tokens))
        if isinstance(head, EmbeddingSpec):
            scorer = weights.at("scorer") if head.dense_weight is not None else None
            vocabulary = self.spec.backbone.vocab_size
            table = scorer.take("token_weights", vocabulary, dtype=torch.float32) if scorer else None
            return VectorReader(head, table)
        return LogitReader(build_classifier(self.spec, weights))

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

    def tokenize_score(self, query: str, documents: list[str], max_seq_length: int) -> Job:
        """The work of ranking `documents`; results will be logits, or late-interaction scores."""
        return self._input.score_job(query, documents, max_seq_length)

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

    def tokenize_encode(self, texts: list[str], outputs: tuple[str, ...], max_seq_length: int) -> Job:
        """The work of turning `texts` into vectors."""
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
        batch = pack(
            [work.tokens for work in works],
            pad_id=self.spec.backbone.pad_token_id,
            align=CPU_ALIGN,
            device=self.device,
            dtype=self.dtype,
        )
        hidden = self._backbone.forward(batch, self._reader.readout)
        return self._reader.read(hidden, batch, works)

    def calibrate(self, seconds: float = 1.0) -> None:
        """Measure which batch size, in tokens, this machine runs fastest, within about `seconds`.

        Of sizes within 3 % of the best the smallest is taken: it lets other requests in sooner.
        """
        end = time.perf_counter() + seconds
        rates: dict[int, float] = {}
        for size in BATCH_SIZES:
            rates[size] = max(self._measure(size) for _ in range(3))  # the first pass of a size warms up
            if time.perf_counter() > end:
                break
        self.tokens_per_second = max(rates.values())
        self.batch_tokens = min(size for size, rate in rates.items() if rate >= 0.97 * self.tokens_per_second)

    def _measure(self, tokens: int) -> float:
        length = min(128, self.max_seq_length)
        head = self.spec.head
        job = build_job((head.vectors[0],) if isinstance(head, EmbeddingSpec) else ("score",), [], [])
        sequence = Tokens(np.full(length, self.spec.backbone.pad_token_id, np.int32), length)
        works = [Work(sequence, 0, job) for _ in range(max(1, tokens // length))]
        start = time.perf_counter()
        self.run(works)
        return len(works) * length / (time.perf_counter() - start)
