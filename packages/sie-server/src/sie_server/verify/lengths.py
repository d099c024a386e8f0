"""The texts of a comparison: a sample in several scripts, and texts with lengths around every limit."""

from __future__ import annotations

import random
from dataclasses import dataclass

from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts
from sie_server.models.spec import CausalSpec, ClassifierSpec, LateInteractionSpec
from sie_server.verify.prompted import RULES

QUERY_TEXT = "how do stars burn hydrogen"
SENTENCES = (
    "Stars burn hydrogen into helium in their cores for billions of years.",
    "Die Straßenbahn fährt über die Brücke nach Österreich.",
    "Le café était déjà fermé quand nous sommes arrivés.",
    "Метро было открыто в тысяча девятьсот тридцать пятом году.",
    "東京は日本の首都です。 机器学习从数据中学习。",
    'The function returns {"a": [1, 2.5], "b": null}; see section 3.14.',
)
MOST = (
    256  # tokens: a longer limit is lowered to this, plus a template, because its cuts follow the same rule
)
FAR = 3  # the length of the longest text, in multiples of the room


@dataclass(frozen=True)
class Case:
    """A query and the documents that are compared with it, with their lengths in tokens."""

    query: str
    documents: list[str]
    query_tokens: int
    document_tokens: tuple[int, ...]


def sample(count: int) -> list[str]:
    """Return `count` texts in several scripts, from empty to beyond most limits; always the same."""
    rng = random.Random(0)
    words = " ".join(SENTENCES).split()
    texts = ["", *SENTENCES]
    while len(texts) < count:
        texts.append(" ".join(rng.choice(words) for _ in range(min(1500, int(rng.lognormvariate(4, 1))))))
    return texts[:count]


def lower_limit(engine: Engine) -> None:
    """Lower the engine's limit, so that a comparison takes seconds. ColBERT keeps its own, which is short."""
    if not isinstance(engine.spec.head, LateInteractionSpec):
        engine.max_seq_length = min(engine.max_seq_length, MOST + _fixed(engine))


def cases(engine: Engine) -> list[Case]:
    """Return texts with lengths at, below and above every length at which libraries cut differently."""
    head, room = engine.spec.head, engine.max_seq_length - _fixed(engine)
    text = _long(FAR * engine.max_seq_length)
    if isinstance(head, ClassifierSpec):
        return [
            _case(engine, text, query, documents)
            for query, documents in _pairs(engine.max_seq_length, room, head)
        ]
    own = head.query_length if isinstance(head, LateInteractionSpec) else room
    documents = (0, 1, room - 2, room - 1, room, room + 1, FAR * room)
    return [_case(engine, text, query, documents) for query in (0, own - 3, own - 1, own, own + 1, FAR * own)]


def _pairs(limit: int, room: int, head: ClassifierSpec) -> list[tuple[int, tuple[int, ...]]]:
    """Return lengths of queries, and of the documents that each is compared with."""
    short, half, most = 5, room // 2, limit * 3 // 4
    if isinstance(head, CausalSpec):
        most = room * 3 // 4
        if head.template.name not in RULES and head.template.cut != "document":
            # no library says how these templates are cut
            return [(short, (0, 1, half, room - short - 8))]
    found: list[tuple[int, tuple[int, ...]]] = [(short, (0, 1, *_around(room - short), FAR * room))]
    found += [(query, (short, *_around(half), FAR * room)) for query in _around(half)]
    longest = room - 8 if isinstance(head, CausalSpec) and head.template.cut == "document" else FAR * room
    queries = {min(query, longest) for query in (*_around(most), *_around(room), FAR * room)}
    return found + [(query, (0, half, FAR * room)) for query in sorted(queries)]


def _around(length: int) -> tuple[int, int, int]:
    return length - 1, length, length + 1


def _case(engine: Engine, text: str, query: int, documents: tuple[int, ...]) -> Case:
    lengths = tuple(sorted({max(0, length) for length in documents}))
    return Case(_first(engine, text, query), [_first(engine, text, one) for one in lengths], query, lengths)


def _first(engine: Engine, text: str, tokens: int) -> str:
    """Return the first tokens of the text as text, without a blank at its end, which PyLate removes."""
    return engine.shorten([text], tokens)[0][0].rstrip() if tokens > 0 else ""


def _fixed(engine: Engine) -> int:
    """Return how many tokens a sequence has besides the texts: special tokens, or the template."""
    head = engine.spec.head
    if isinstance(head, ClassifierSpec):
        job = engine.tokenize_plain(ScoreTexts("", [""], engine.max_seq_length))
    else:
        job = engine.tokenize_encode([""], tuple(engine.spec.outputs[-1:]), engine.max_seq_length)
    return len(job.work[0].tokens)


def _long(tokens: int) -> str:
    """Return a text of at least `tokens` tokens."""
    rng, words = random.Random(1), " ".join(SENTENCES[:4]).split()
    return " ".join(rng.choice(words) for _ in range(tokens))
