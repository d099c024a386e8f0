"""One loaded model: text in, jobs out; works in, results out. All that serving ever sees of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from sie_server.engine.device import pick_device, pick_dtype
from sie_server.engine.document_cache import ModelDocuments
from sie_server.engine.forward import Forward
from sie_server.engine.job import Job, Work
from sie_server.engine.kinds.colbert import ColbertInput, Floats
from sie_server.engine.kinds.embeddings import score_known
from sie_server.engine.kinds.listwise import ListwiseTokenizer, marked
from sie_server.engine.kinds.table import KINDS, Parts
from sie_server.engine.lora.adapter import Adapter, read_changes
from sie_server.engine.lora.tensors import needed_bytes
from sie_server.engine.storage.source import failed
from sie_server.engine.storage.tally import Tally
from sie_server.engine.storage.weights import CheckpointWeights
from sie_server.engine.text.chunks import Chunking, ChunkInput
from sie_server.engine.text.jobs import EncodeInput, TextInput
from sie_server.errors import InvalidInput
from sie_server.models.batch import Readout
from sie_server.models.checkpoints.reader import read_spec
from sie_server.models.registry import build_backbone
from sie_server.models.spec import EmbeddingSpec, ModelSpec, UnsupportedCheckpoint

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
        prompts: Mapping[str, str] = MappingProxyType({}),
        share_prefix: bool = True,
        documents: ModelDocuments | None = None,
        tally: Tally | None = None,
    ):
        """Load a checkpoint directory.

        `max_seq_length` (tokens per text or pair) replaces the checkpoint's own default. `template` names the form
        in which a causal reranker is asked, `prompts` what an encoder wants before a text (`query`, `document`), both
        where the directory does not say so itself; `share_prefix` is off only to measure what sharing saves.
        `documents` is where token vectors of late-interaction models are cached;
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
            self._load(directory, template, prompts)
        except UnsupportedCheckpoint as error:
            raise failed(f"cannot load {directory}: {error}", "UnsupportedCheckpoint") from error
        self.max_seq_length = min(max_seq_length or self.spec.max_seq_length, self.spec.backbone.max_length)
        self.batch_tokens = BATCH_SIZES[self.device.type][0]
        self.tokens_per_second = 10_000.0

    def _load(self, directory: Path, template: str | None, prompts: Mapping[str, str]) -> None:
        self.spec: ModelSpec = read_spec(directory, template, prompts)
        kind = KINDS[type(self.spec.head)]
        self._tokenizer = kind.tokenizer(directory, self.spec)
        self._check_vocabulary()
        parts = Parts(
            directory, self.spec, self.spec.head, self._tokenizer, self.documents, self._share_prefix
        )
        self._input = kind.input(parts)
        self._plain_input = kind.input(replace(parts, documents=None, share_prefix=False))
        self._kind, self._parts = kind, parts
        weights = CheckpointWeights(directory, device=self.device, dtype=self.dtype, tally=self._tally)
        backbone = build_backbone(self.spec, weights)
        reader = kind.reader(parts, weights)
        self._forward = Forward(self.spec.backbone, backbone, reader, self.device, self.dtype)
        weights.finish()
        self._targets = weights.targets

    def _check_vocabulary(self) -> None:
        known, rows = self._tokenizer.vocab_size, self.spec.backbone.vocab_size
        if known > rows:
            raise UnsupportedCheckpoint(f"tokenizer.json has {known} tokens, the embedding table {rows} rows")

    @property
    def memory_bytes(self) -> int:
        """Bytes of its tensors."""
        return self._tally.nbytes

    def attach(self, directory: Path, base_names: Sequence[str] = ()) -> Adapter:
        """Load a PEFT adapter, to be given to `tokenize_*`; any thread may call this while others run.

        `base_names` are the hub ids the model goes by: an adapter that names another base is refused.

        Raises:
            ModelLoadFailed: the adapter is no LoRA, or something in it could not be applied to this model.
        """
        try:
            if self.spec.compat:
                raise UnsupportedCheckpoint(
                    f"{self.spec.architecture} runs through transformers, where adapters are not applied per sequence"
                )
            changes = read_changes(directory, self._targets, base_names)
        except UnsupportedCheckpoint as error:
            message = f"cannot load the adapter {directory}: {error}"
            raise failed(message, "UnsupportedCheckpoint") from error
        documents = self.documents.under_adapter() if self.documents else None
        texts = self._kind.input(replace(self._parts, documents=documents))
        return Adapter(directory, changes, texts, documents)

    def adapter_bytes(self, directory: Path) -> int:
        """What a PEFT adapter will take; only headers are read. 0 for a broken one, whose load will say why."""
        try:
            return needed_bytes(directory, self._targets)
        except UnsupportedCheckpoint:
            return 0

    def detach(self, adapter: Adapter) -> None:
        """Forget what is cached under `adapter`. Jobs that have it finish with it; its memory goes with the last."""
        if adapter.documents:
            adapter.documents.forget()

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
        self,
        query: str,
        documents: list[str],
        max_seq_length: int,
        instruction: str | None = None,
        *,
        adapter: Adapter | None = None,
    ) -> Job:
        """The work of ranking `documents`; results will be logits, or late-interaction scores.

        `instruction` only for a model whose `spec.takes_instruction`; `adapter` is one that this engine attached.
        """
        job = self._input_of(adapter).score_job(query, documents, max_seq_length, instruction)
        return _under(adapter, job)

    def shorten(self, texts: list[str], most: int) -> tuple[list[str], list[bool]]:
        """Each text to where its `most`-th token ends, special ones not counted, and which texts are shorter now.

        A token that ends within a character is read to that character's end.
        """
        encoded, cut = self._tokenizer.encode_with_spans(texts, most)
        ends = [spans[-1][1] if spans else 0 for _, spans in encoded]
        return [t[:e] if c else t for t, e, c in zip(texts, ends, cut, strict=True)], cut

    def tokenize_plain(
        self,
        query: str,
        documents: list[str],
        max_seq_length: int,
        instruction: str | None = None,
        chunking: Chunking | None = None,
    ) -> Job:
        """As `tokenize_score` or `tokenize_chunks`, every sequence whole: nothing cached, no shared start.

        To look at, not to run.
        """
        if chunking:
            return _splitting(self._plain_input).chunk_job(
                query, documents, max_seq_length, chunking, instruction
            )
        return self._plain_input.score_job(query, documents, max_seq_length, instruction)

    def tokenize_vectors(
        self,
        query: str | Floats,
        documents: list[str] | list[Floats],
        max_seq_length: int,
        *,
        adapter: Adapter | None = None,
    ) -> Job:
        """As `tokenize_score`, where query or documents came as token vectors [tokens, dim].

        Only for models with `LateInteractionSpec`.
        """
        texts = self._input_of(adapter)
        assert isinstance(texts, ColbertInput)
        return _under(adapter, texts.vectors_job(query, documents, max_seq_length))

    def tokenize_chunks(
        self,
        query: str,
        documents: list[str],
        max_seq_length: int,
        chunking: Chunking,
        instruction: str | None = None,
        *,
        adapter: Adapter | None = None,
    ) -> Job:
        """As `tokenize_score` with every document whole, in overlapping windows, one result each (`Job.chunks`).

        Raises:
            InvalidInput: this kind of model does not split documents, or the overlap is too large.
        """
        texts = _splitting(self._input_of(adapter))
        return _under(adapter, texts.chunk_job(query, documents, max_seq_length, chunking, instruction))

    def tokenize_encode(
        self,
        texts: list[str],
        outputs: tuple[str, ...],
        max_seq_length: int,
        *,
        is_query: bool = False,
        adapter: Adapter | None = None,
    ) -> Job:
        """The work of turning `texts` into vectors."""
        encoder = self._input_of(adapter)
        assert isinstance(encoder, EncodeInput)  # the spec lists outputs other than "score"
        return _under(adapter, encoder.encode_job(texts, outputs, max_seq_length, is_query=is_query))

    def _input_of(self, adapter: Adapter | None) -> TextInput:
        return adapter.input if adapter else self._input

    def marked(self, work: Work) -> list[int]:
        """Of a listwise reranker: the places where documents, and last the query, are read out."""
        assert isinstance(self._tokenizer, ListwiseTokenizer)
        return [int(place) for place in marked(work.tokens.ids, self._tokenizer.marks)]

    @property
    def readout(self) -> Readout:
        """Which tokens' hidden states make a result."""
        return self._forward.reader.readout

    def decode(self, ids: list[int]) -> str:
        """Tokens as text, special ones included."""
        return self._tokenizer.decode(ids)

    def tokens(self, ids: list[int]) -> list[str]:
        """Tokens by name."""
        return self._tokenizer.tokens(ids)

    def read_to(self, text: str, work: Work) -> int | None:
        """How many characters of `text`, which was cut, are in `work`; None where its tokens are not found in a row."""
        return self._tokenizer.read_to(text, work.tokens.ids.tolist())

    def run(self, works: list[Work]) -> list[Any]:
        """See `Forward.run`."""
        return self._forward.run(works)

    @torch.inference_mode()
    def score_known(self, job: Job) -> None:
        """Score the documents whose vectors were there already, once the query's are; as `run`, on one thread."""
        head = self.spec.head
        score_known(job, self.device, head.dense_weight if isinstance(head, EmbeddingSpec) else None)


def _splitting(texts: TextInput) -> ChunkInput:
    if not isinstance(texts, ChunkInput):
        raise InvalidInput(
            "this model does not split documents, only 'truncate' is given - at `$.options.long_document`"
        )
    return texts


def _under(adapter: Adapter | None, job: Job) -> Job:
    job.adapter = adapter
    return job
