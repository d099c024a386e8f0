"""The cells of the table in the order of their importance, and the share of the time that each one gets."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from bench.gpu.shapes import SHAPES, GPUShape
from bench.workload import natural_texts, plain_texts

LONG_WORDS = 600  # of documents that fill 512 tokens
CLIENTS = (1, 8, 64)


@dataclass(frozen=True)
class Load:
    """Documents of one request; `words` of each one, or natural lengths."""

    name: str
    documents: int
    words: int | None = None
    least: int = 4  # documents of a measurement, below which it is left out

    def texts(self, shape: GPUShape) -> list[str]:
        if self.words:
            return plain_texts(self.documents, self.words)
        return natural_texts(self.documents, shape.median_words)


LOADS = {
    "natural-100": Load("100 natural", 100),
    "512-100": Load("100 × 512 tokens", 100, LONG_WORDS),
    "natural-1000": Load("1,000 natural", 1000, least=200),
}
NAMES = {"MiniLM-L6": "minilm", "XLM-R base": "xlm-r", "gte-modernbert": "gte", "Qwen3-0.6B": "qwen3"}
TABLE_SHAPES = {NAMES[shape.name]: shape for shape in SHAPES if shape.name in NAMES}
# The share of the time that each kind of cell gets, by shape: larger models take longer for a round of all contenders.
KINDS = ("engine/natural-100", "http/natural-100", "engine/512-100", "engine/natural-1000")
WEIGHTS = {
    "minilm": (1.2, 1.2, 0.8, 1.6),
    "xlm-r": (4.0, 1.2, 1.2, 0.2),
    "gte": (2.0, 0.8, 0.8, 0.2),
    "qwen3": (2.2, 0.6, 0.8, 0.2),
}


@dataclass(frozen=True)
class Cell:
    """One measurement: a shape, a load, and either the engine with its rivals or the servers with clients."""

    shape: str
    kind: str  # "engine" or "http"
    load: str

    @property
    def name(self) -> str:
        """The name that `--rows` matches: `minilm/engine/natural-100`."""
        return f"{self.shape}/{self.kind}/{self.load}"

    @property
    def weight(self) -> float:
        return WEIGHTS[self.shape][KINDS.index(f"{self.kind}/{self.load}")]


CELLS = [Cell(shape, *kind.split("/", 1)) for shape in ("minilm", "xlm-r", "gte", "qwen3") for kind in KINDS]


def chosen(patterns: Iterable[str]) -> list[Cell]:
    """Return the cells that match one of the patterns, such as `minilm/*`.

    Raises:
        ValueError: a pattern matches no cell.
    """
    found = []
    for pattern in patterns:
        matching = [cell for cell in CELLS if fnmatchcase(cell.name, pattern)]
        if not matching:
            raise ValueError(f"{pattern!r} matches no row; the rows are {', '.join(c.name for c in CELLS)}")
        found += matching
    return [cell for cell in CELLS if cell in found]


class Budget:
    """The time for all cells. What one cell does not use goes to those after it."""

    def __init__(self, seconds: float, cells: Sequence[Cell]) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self._weights = {cell: cell.weight for cell in cells}

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    def share(self, cells: Sequence[Cell]) -> float:
        """Return the seconds that these cells may use now, of those that are left."""
        waiting = sum(self._weights.values())
        return max(0.0, self.left) * sum(self._weights[cell] for cell in cells) / waiting

    def done(self, cell: Cell) -> None:
        del self._weights[cell]


def tiny(shape: GPUShape) -> GPUShape:
    """A shape of the same kind that runs in milliseconds, with its name."""
    return replace(shape.tiny, name=f"{shape.name}, tiny")
