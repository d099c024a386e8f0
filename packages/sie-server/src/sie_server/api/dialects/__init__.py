"""Dialects: other vendors' HTTP APIs on the same port (docs/dialects.md). This table maps paths to dialects.

If several dialects share a path, the body selects one: the first that claims it, else the last. The prefix `/NAME`
selects a vendor explicitly, for clients whose requests are equal and whose responses differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sie_server.api.dialects.dialect import Dialect
from sie_server.api.dialects.vendors.hosted.cohere import BEDROCK, COHERE_V1, COHERE_V2
from sie_server.api.dialects.vendors.hosted.dashscope import DASHSCOPE, DASHSCOPE_COMPATIBLE
from sie_server.api.dialects.vendors.hosted.isaacus import ISAACUS
from sie_server.api.dialects.vendors.hosted.jina import INFINITY, JINA
from sie_server.api.dialects.vendors.hosted.mixedbread import MIXEDBREAD
from sie_server.api.dialects.vendors.hosted.pinecone import PINECONE
from sie_server.api.dialects.vendors.hosted.voyage import VOYAGE
from sie_server.api.dialects.vendors.hosted.zeroentropy import ZEROENTROPY
from sie_server.api.dialects.vendors.nim import NIM
from sie_server.api.dialects.vendors.sglang import SGLANG
from sie_server.api.dialects.vendors.tei import PREDICT, PREDICT_PAIR, TEI
from sie_server.api.dialects.vendors.vllm import VLLM_MARKED, VLLM_RERANK, VLLM_SCORE
from sie_server.api.dialects.vendors.weaviate import VLLM_OR_WEAVIATE, WEAVIATE

INVOKE, IS_INVOKE = "/model/{model}/invoke", re.compile(r"/model/.+/invoke")
RERANK: dict[str, tuple[Dialect, ...]] = {
    "/v2/rerank": (COHERE_V2,),
    "/v1/rerank": (VOYAGE, COHERE_V1, VLLM_MARKED, JINA),
    "/rerank": (TEI, WEAVIATE, VLLM_OR_WEAVIATE, VLLM_RERANK),
    "/v1/reranking": (MIXEDBREAD, JINA),
    "/reranking": (MIXEDBREAD, JINA),
    "/v1/ranking": (NIM,),
    "/v1/score": (VLLM_SCORE,),
    "/score": (VLLM_SCORE,),
    "/cohere/v2/rerank": (COHERE_V2,),
    "/cohere/v1/rerank": (COHERE_V1,),
    "/jina/v1/rerank": (JINA,),
    "/voyage/v1/rerank": (VOYAGE,),
    "/v1/rerankings": (ISAACUS,),
    "/inference/v1/rerank": (VOYAGE,),  # Fireworks, whose answers are Voyage's
    "/infinity/rerank": (INFINITY,),
    "/infinity/v1/rerank": (INFINITY,),
    "/sglang/v1/rerank": (SGLANG,),
    "/mixedbread/v1/reranking": (MIXEDBREAD,),
    "/pinecone/rerank": (PINECONE,),
    "/v1/models/rerank": (ZEROENTROPY,),
    "/zeroentropy/v1/models/rerank": (ZEROENTROPY,),
    "/api/v1/services/rerank/text-rerank/text-rerank": (DASHSCOPE,),
    "/compatible-api/v1/reranks": (DASHSCOPE_COMPATIBLE,),
    "/providers/cohere/v2/rerank": (COHERE_V2,),  # Azure AI Foundry
    "/providers/cohere/v1/rerank": (COHERE_V1,),
    INVOKE: (BEDROCK,),
    "/weaviate/rerank": (WEAVIATE,),
    "/vllm/v2/rerank": (VLLM_RERANK,),
    "/vllm/v1/rerank": (VLLM_RERANK,),
    "/vllm/rerank": (VLLM_RERANK,),
    "/vllm/v1/score": (VLLM_SCORE,),
    "/vllm/score": (VLLM_SCORE,),
    "/tei/rerank": (TEI,),
    "/predict": (PREDICT_PAIR, PREDICT),
    "/tei/predict": (PREDICT_PAIR, PREDICT),
    "/nim/v1/ranking": (NIM,),
}
# TEI's other routes (`api.embeddings`), whose errors have TEI's format
ANY = ("/", "/tei", "/invocations")  # the body decides what it is; the last one is SageMaker's
ENCODE = ("/embed", "/embed_sparse", "/embed_all", "/similarity")
TOKENS, INFO = ("/tokenize", "/decode"), ("/info",)
TEI_ONLY = [prefix + path for prefix in ("", "/tei") for path in (*ENCODE, *TOKENS, *INFO)]
PATHS = {**RERANK, **dict.fromkeys(TEI_ONLY, (TEI,)), **dict.fromkeys(ANY, (TEI, JINA))}


def listed(path: str) -> str:
    """Return a path as `RERANK` lists it: Bedrock's contains a model id."""
    return INVOKE if IS_INVOKE.fullmatch(path) else path


def dialect_of(path: str, body: Mapping[str, Any]) -> Dialect:
    """Return the dialect of a body sent to a path of `RERANK` or, to score texts, of `ANY`."""
    candidates = RERANK.get(listed(path)) or ((PREDICT_PAIR, PREDICT) if "inputs" in body else (TEI, JINA))
    return next((dialect for dialect in candidates if dialect.claims(body)), candidates[-1])


def owner_of(path: str) -> Dialect | None:
    """Return the dialect whose error format a path uses before a body is read; None if no dialect has the path."""
    candidates = PATHS.get(listed(path))
    return candidates[0] if candidates else None
