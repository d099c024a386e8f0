"""A loaded model as serving sees it: texts → jobs, works → results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from sie_server.engine.device import INT8, pick_device, pick_dtype
from sie_server.engine.document_cache import ModelDocuments
from sie_server.engine.forward import Flight, Forward
from sie_server.engine.job import Floats, Job, ScoreTexts, Work
from sie_server.engine.kinds.base import ChunkInput, EncodeInput, Parts, TextInput
from sie_server.engine.kinds.colbert import ColbertInput
from sie_server.engine.kinds.embeddings import score_known
from sie_server.engine.kinds.listwise import ListwiseTokenizer, marked
from sie_server.engine.kinds.table import KINDS
from sie_server.engine.lora.adapter import Adapter, read_changes
from sie_server.engine.lora.tensors import needed_bytes
from sie_server.engine.storage.source import failed, unsupported
from sie_server.engine.storage.tally import Tally
from sie_server.engine.storage.weights import CheckpointWeights
from sie_server.engine.text.tokenizer import Place
from sie_server.errors import InvalidInput
from sie_server.models.batch import Readout
from sie_server.models.building import build_backbone, check_format
from sie_server.models.checkpoints.reader import read_spec
from sie_server.models.layers.int8.machine import problem as int8_problem
from sie_server.models.spec import EmbeddingSpec, LateInteractionSpec, ModelSpec, UnsupportedCheckpoint
from sie_server.templates.pair_settings import Truncation

# Tokens. Smaller batches pay per call, larger ones fall out of the CPU caches. Calibration picks the fastest.
BATCH_SIZES = {"cpu": (2048, 3072, 4096), "cuda": (4096, 8192, 16384, 32768)}


class Engine:
    """A checkpoint on a device. `tokenize_*` is thread-safe; only one thread at a time may call `run`."""

    def __init__(
        self,
        directory: Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_seq_length: int | None = None,
        template: str | None = None,
        prompts: Mapping[str, str] = MappingProxyType({}),
        truncation: Truncation | None = None,
        label: str | int | None = None,
        share_prefix: bool = True,
        documents: ModelDocuments | None = None,
        tally: Tally | None = None,
    ):
        """Load a checkpoint directory.

        `max_seq_length` (tokens per text or pair) replaces the checkpoint's default. `template` names the template of
        a causal reranker, `prompts` are an encoder's texts before a `query` and a `document`, `truncation` is how a
        cross-encoder cuts its pairs, and `label` is the label that a classifier of several scores; each applies only if
        the directory does not define it. `share_prefix=False` reads every prompt whole, to measure the saving.
        `documents` caches token vectors of late-interaction models. `tally` counts the bytes loaded so far.

        Raises:
            ModelLoadFailed: the checkpoint is incomplete, has unused weights, or is not supported.
        """
        try:
            self.device = pick_device(device)
        except ValueError as error:
            raise failed(str(error), "ValueError") from error
        self.dtype = pick_dtype(dtype, self.device)
        self.int8 = dtype == INT8
        if self.int8 and (reason := int8_problem(self.device)):
            raise failed(reason, "ValueError")
        self._share_prefix = share_prefix
        self.documents = documents
        self._tally = tally or Tally()
        try:
            self._load(directory, read_spec(directory, template, prompts, truncation, label))
        except UnsupportedCheckpoint as error:
            raise unsupported(directory, error) from error
        self.max_seq_length = min(max_seq_length or self.spec.max_seq_length, self.spec.backbone.max_length)
        self.trouble: str | None = None  # why its forward passes fail, after several in a row
        self.batch_tokens = BATCH_SIZES[self.device.type][0]
        self.tokens_per_second = 10_000.0
        self.activation_bytes = 0  # that a batch takes on a GPU in addition to the model; 0: not measured

    def _load(self, directory: Path, spec: ModelSpec) -> None:
        self.spec = spec
        if self.int8:
            check_format(spec)
        kind = KINDS[type(self.spec.head)]
        self._tokenizer = kind.tokenizer(directory, self.spec)
        self._check_vocabulary()
        parts = Parts(
            directory, self.spec, self.spec.head, self._tokenizer, self.documents, self._share_prefix
        )
        self._input = kind.input(parts)
        self._plain_input = kind.input(replace(parts, documents=None, share_prefix=False))
        self._kind, self._parts = kind, parts
        weights = CheckpointWeights(
            directory, device=self.device, dtype=self.dtype, int8=self.int8, tally=self._tally
        )
        backbone = build_backbone(self.spec, weights)
        reader = kind.reader(parts, weights)
        self._forward = Forward(self.spec.backbone, backbone, reader, self.device, self.dtype)
        weights.finish(bare=self.spec.bare)
        self._targets = weights.targets

    def _check_vocabulary(self) -> None:
        known, rows = self._tokenizer.vocab_size, self.spec.backbone.vocab_size
        if known > rows:
            raise UnsupportedCheckpoint(
                f"tokenizer.json has {known} tokens, but the embedding table has {rows} rows"
            )

    @property
    def memory_bytes(self) -> int:
        """Bytes of the model's tensors."""
        return self._tally.nbytes

    def attach(self, directory: Path, base_names: Sequence[str] = ()) -> Adapter:
        """Load a PEFT adapter for use with `tokenize_*`. Thread-safe.

        `base_names` are the model's hub ids: an adapter trained on another base is refused.

        Raises:
            ModelLoadFailed: the adapter is not a LoRA adapter, or does not fit this model.
        """
        try:
            if self.spec.compat:
                raise UnsupportedCheckpoint(
                    f"{self.spec.architecture} runs through transformers, which cannot apply adapters per sequence"
                )
            changes = read_changes(directory, self._targets, base_names)
        except UnsupportedCheckpoint as error:
            message = f"cannot load the adapter {directory}: {error}"
            raise failed(message, "UnsupportedCheckpoint") from error
        documents = self.documents.for_adapter() if self.documents else None
        texts = self._kind.input(replace(self._parts, documents=documents))
        return Adapter(directory, changes, texts, documents)

    def adapter_bytes(self, directory: Path) -> int:
        """Return the bytes a PEFT adapter will take, from its headers; 0 if it is broken, which its load reports."""
        try:
            return needed_bytes(directory, self._targets)
        except UnsupportedCheckpoint:
            return 0

    def detach(self, adapter: Adapter) -> None:
        """Drop the adapter's cached documents. Its jobs keep its tensors until the last one ends."""
        if adapter.documents:
            adapter.documents.forget()

    def limit(self, requested: int | None) -> int:
        """Return the tokens per text or pair: the requested number, or the model's default.

        Raises:
            InvalidInput: more than the model can read, or too few for any text.
        """
        most, least = self.spec.backbone.max_length, 8
        if requested is not None and not least <= requested <= most:
            raise InvalidInput(
                f"max_seq_length must be {least} to {most} for this model, got {requested} "
                "- at `$.options.max_seq_length`"
            )
        return requested or self.max_seq_length

    def tokenize_score(self, texts: ScoreTexts, *, adapter: Adapter | None = None) -> Job:
        """Build the job of a score request; its results are logits or late-interaction scores.

        With `texts.chunking` there is one result per window (`Job.chunks`). `adapter` must come from `attach`.

        Raises:
            InvalidInput: this model does not split documents, the overlap is too large, or the texts do not fit.
        """
        return _with_changes(_score_job(self._input_of(adapter), texts), adapter)

    def tokenize_plain(self, texts: ScoreTexts, *, adapter: Adapter | None = None) -> Job:
        """As `tokenize_score`, with every sequence whole: no cached documents, no shared prefix. For inspection."""
        return _with_changes(_score_job(self._plain_input, texts), adapter)

    def shorten(self, texts: list[str], most: int) -> tuple[list[str], list[bool]]:
        """Truncate texts after `most` tokens, special tokens not counted, and return which are shorter now.

        If the last token ends inside a character, the whole character is kept.
        """
        found = self._tokenizer.read(texts, most)
        return [reading.start_of(text) for reading, text in zip(found, texts, strict=True)], [
            reading.cut for reading in found
        ]

    def tokenize_vectors(
        self,
        query: str | Floats,
        documents: list[str] | list[Floats],
        max_seq_length: int,
        *,
        adapter: Adapter | None = None,
    ) -> Job:
        """As `tokenize_score`, with token vectors [tokens, dim] for the query, the documents or both.

        Only for models with `LateInteractionSpec`.
        """
        texts = self._input_of(adapter)
        assert isinstance(texts, ColbertInput)
        return _with_changes(texts.vectors_job(query, documents, max_seq_length), adapter)

    def tokenize_encode(
        self,
        texts: list[str],
        outputs: tuple[str, ...],
        max_seq_length: int,
        *,
        is_query: bool = False,
        prompt: str = "",
        adapter: Adapter | None = None,
    ) -> Job:
        """Build the job of an encode request; its results are vectors. `prompt` is put before every text."""
        encoder = self._input_of(adapter)
        assert isinstance(encoder, EncodeInput)  # the spec lists outputs other than "score"
        job = encoder.encode_job(texts, outputs, max_seq_length, is_query=is_query, prompt=prompt)
        return _with_changes(job, adapter)

    def _input_of(self, adapter: Adapter | None) -> TextInput:
        return adapter.input if adapter else self._input

    @property
    def tokenizes_briskly(self) -> bool:
        """Whether a text of some thousand characters is tokenised in milliseconds, regardless of its content."""
        return self._tokenizer.brisk

    def reads_apart(self, adapter: Adapter | None) -> bool:
        """Return whether the sequences of a text do not depend on the other texts of its request."""
        return self._input_of(adapter).apart

    def marked(self, work: Work) -> list[int]:
        """Return a listwise block's read-out positions: the documents', then the query's."""
        assert isinstance(self._tokenizer, ListwiseTokenizer)
        return [int(place) for place in marked(work.tokens.ids, self._tokenizer.marks)]

    @property
    def matches_tokens(self) -> bool:
        """Whether a score is made of the similarities of tokens, so that a job may have the output `token_scores`."""
        head = self.spec.head
        return isinstance(head, LateInteractionSpec) or (
            isinstance(head, EmbeddingSpec) and "score" in self.spec.outputs
        )

    @property
    def readout(self) -> Readout:
        """The tokens whose hidden states make a result."""
        return self._forward.reader.readout

    @property
    def truncation_side(self) -> str:
        """The side on which truncated texts lose tokens: `right` or `left`."""
        return self._tokenizer.truncation_side

    def decode(self, ids: list[int]) -> str:
        """Return the text of the tokens, special tokens included."""
        return self._tokenizer.decode(ids)

    def written(self, ids: list[int]) -> str:
        """Return the text of the tokens without special tokens."""
        return self._tokenizer.written(ids)

    def places(self, text: str, *, special: bool) -> list[Place]:
        """Return the tokens of a whole text and their characters; blocking, for a tokeniser thread."""
        return self._tokenizer.places(text, special=special)

    def tokens(self, ids: list[int]) -> list[str]:
        """Return the names of the tokens."""
        return self._tokenizer.tokens(ids)

    def read_to(self, text: str, work: Work) -> int | None:
        """Return how many characters of the truncated `text` are in `work`; None if its tokens are not found."""
        return self._tokenizer.read_to(text, work.tokens.ids.tolist())

    def run(self, works: list[Work]) -> list[Any]:
        """See `Forward.run`."""
        return self._forward.run(works)

    @property
    def overlap(self) -> int:
        """How many batches may be under way while the next one is launched: a GPU runs them on its own."""
        return 1 if self.device.type == "cuda" else 0

    def launch(self, works: list[Work]) -> Flight:
        """See `Forward.launch`. Flights are finished in the order of their launches, in the thread of `run`."""
        return self._forward.launch(works)

    @torch.inference_mode()
    def score_known(self, job: Job) -> None:
        """Score the documents in `job.known` after the query has been run. Threads: as `run`."""
        head = self.spec.head
        score_known(job, self.device, head.dense_weight if isinstance(head, EmbeddingSpec) else None)


def _score_job(texts_input: TextInput, texts: ScoreTexts) -> Job:
    if texts.chunking is None:
        return texts_input.score_job(texts)
    if not isinstance(texts_input, ChunkInput):
        raise InvalidInput(
            "this model does not split documents; send 'truncate' or 'refuse' - at `$.options.long_document`"
        )
    return texts_input.chunk_job(texts, texts.chunking)


def _with_changes(job: Job, adapter: Adapter | None) -> Job:
    job.changes = adapter.changes if adapter else None
    return job
