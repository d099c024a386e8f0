"""Head spec → kind, by exact class. A new kind is a row here; `engine.engine` stays as it is."""

from __future__ import annotations

from sie_server.engine.kinds.base import Kind
from sie_server.engine.kinds.colbert import COLBERT
from sie_server.engine.kinds.embeddings import EMBEDDINGS
from sie_server.engine.kinds.listwise import LISTWISE
from sie_server.engine.kinds.pairs import PAIRS
from sie_server.engine.kinds.prompted import CAUSAL, LAYERWISE, PROMPTED_CLASSIFIER
from sie_server.engine.kinds.sparse import M3, SPLADE
from sie_server.models.heads.sparse import M3Spec, SpladeSpec
from sie_server.models.spec import (
    CausalSpec,
    ClassifierSpec,
    EmbeddingSpec,
    LateInteractionSpec,
    LayerwiseSpec,
    ListwiseSpec,
    PromptedClassifierSpec,
)

KINDS: dict[type, Kind] = {
    ClassifierSpec: PAIRS,
    CausalSpec: CAUSAL,
    LayerwiseSpec: LAYERWISE,
    PromptedClassifierSpec: PROMPTED_CLASSIFIER,
    EmbeddingSpec: EMBEDDINGS,
    M3Spec: M3,
    SpladeSpec: SPLADE,
    LateInteractionSpec: COLBERT,
    ListwiseSpec: LISTWISE,
}
